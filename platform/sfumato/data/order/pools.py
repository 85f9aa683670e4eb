"""Pools: what a training run draws from, each in its own order.

A plain data set is one pool. Of several data sets (`data.mix`), each is a pool; a set whose shards differ in
image size has one pool per size (a bucket), and with `data.balance: class` one per class. The weights set how
often each pool comes: a data set's weight is divided among its sizes by their samples, and among its classes
evenly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from sfumato.data.columns import carried, carries_text, described
from sfumato.data.config import DataSettings
from sfumato.data.format.columns import TEXT, ColumnInfo
from sfumato.data.format.index import load_shard
from sfumato.data.format.manifest import ImageInfo, Manifest, ShardInfo, verify
from sfumato.data.order.curriculum import Stage
from sfumato.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Pool:
    """Samples of one data set that have the same size and, if classes are balanced, the same class."""

    folder: str
    image: ImageInfo
    classes: int
    shards: tuple[ShardInfo, ...]
    samples: tuple[int, ...]
    """How many samples of each shard belong to it."""
    weight: float
    label: int | None = None
    """Only samples of this class; null: all."""
    columns: Mapping[str, ColumnInfo] = field(default_factory=dict, hash=False)
    """The further columns that batches carry."""
    images: Mapping[str, ImageInfo] = field(default_factory=dict, hash=False)
    """The geometry of those that are images."""

    @property
    def total(self) -> int:
        return sum(self.samples)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width): all images of one batch have one."""
        return self.image.height, self.image.width


def pools_of(settings: DataSettings, manifest: Manifest) -> tuple[Pool, ...]:
    """The pools of a recipe's data. Reads the manifests of `data.mix`, and all indexes where classes are
    balanced. Raises ConfigError or DataError for sets that do not fit together."""
    others = [(other.path, Manifest.load(other.path), other.weight) for other in settings.mix]
    sets = [(settings.path, manifest, 1.0), *others]
    for path, other_manifest, _ in others:
        _check_alike(settings.path, manifest, path, other_manifest)
        _check_columns(settings, manifest, path, other_manifest)
    columns = carried(settings, manifest)
    if carries_text(settings) and TEXT not in columns and not any(part.captions for _, part, _ in sets):
        raise ConfigError(f"data.text is set, but no sample of {settings.path} has a caption")
    pools = [
        replace(
            pool,
            columns={name: part.columns[name] for name in columns},
            images=part.further_images(columns, pool.image),
        )
        for path, part, weight in sets
        for pool in _pools_of_set(path, part, weight, balance=settings.balance == "class")
    ]
    _check_transforms(settings, pools)
    _check_curriculum(settings, manifest, pools)
    # Pools of one size together, larger ones first: the order does not depend on file names.
    return tuple(sorted(pools, key=lambda pool: (-pool.size[0] * pool.size[1], pool.size)))


def stages_of(settings: DataSettings, pools: Sequence[Pool], batch: int) -> tuple[Stage, ...]:
    """The stages of the recipe's curriculum, for global batches of `batch` rows; whole batches each."""
    rows = batch // settings.streams
    return tuple(
        Stage(
            -(-stage.images // batch) * rows,
            tuple(number for number, pool in enumerate(pools) if pool.label in stage.classes),
        )
        for stage in settings.curriculum
    )


def check(settings: DataSettings, manifest: Manifest) -> tuple[Pool, ...]:
    """Verify the mixed-in data sets and that all fit together. Raises ConfigError or DataError."""
    for other in settings.mix:
        verify(other.path, settings.verify)
    return pools_of(settings, manifest)


def content_digest(settings: DataSettings, manifest: Manifest) -> str:
    """sha256 of the content of all data sets of a recipe, wherever stored; of a single set, its own."""
    sets = [manifest, *(Manifest.load(other.path) for other in settings.mix)]
    digests = [part.digest for part in sets]
    names = carried(settings, manifest)
    columns = [
        described({name: part.columns[name] for name in names if name in part.columns}) for part in sets
    ]
    if any(columns):
        digests.append(json.dumps(columns, sort_keys=True))
    return digests[0] if len(digests) == 1 else hashlib.sha256(":".join(digests).encode()).hexdigest()


def _check_alike(path: str, manifest: Manifest, other_path: str, other: Manifest) -> None:
    if other.classes != manifest.classes:
        raise ConfigError(
            f"data.mix: {other_path} has {len(other.classes)} classes that are not those of {path} "
            f"({len(manifest.classes)}): mix data sets with the same classes, or pack both without labels"
        )
    if other.image.channels != manifest.image.channels:
        raise ConfigError(
            f"data.mix: {other_path} has {other.image.channels} channels, {path} has "
            f"{manifest.image.channels}: pack both with the same"
        )
    sizes = {_size(manifest.image_of(shard)) for shard in manifest.shards}
    other_sizes = {_size(other.image_of(shard)) for shard in other.shards}
    if len(sizes) == len(other_sizes) == 1 and sizes != other_sizes:
        (height, width), (other_height, other_width) = *sizes, *other_sizes
        raise ConfigError(
            f"data.mix: the images of {other_path} are {other_width}x{other_height}, those of {path} "
            f"{width}x{height}: pack both at one size"
        )


def _check_columns(settings: DataSettings, manifest: Manifest, other_path: str, other: Manifest) -> None:
    """Check that a mixed-in data set has the same further columns, as far as batches carry them."""
    for name, info in carried(settings, manifest).items():
        if name not in other.columns:
            raise ConfigError(
                f"data.mix: {other_path} has no column {name!r}, which batches carry: leave it out of "
                "data.columns, or add it to both data sets"
            )
        theirs, ours = other.columns[name].column, info.column
        if theirs != ours:
            shown = [f"{c.kind} {c.dtype} {list(c.shape)}" for c in (theirs, ours)]
            raise ConfigError(
                f"data.mix: the column {name!r} of {other_path} is {shown[0]}, that of {settings.path} is "
                f"{shown[1]}: make both alike"
            )


def _check_transforms(settings: DataSettings, pools: Sequence[Pool]) -> None:
    """Check that the transforms can move all images of a sample together."""
    problems = []
    for pool in pools:
        sizes = {name: _size(look) for name, look in {"image": pool.image, **pool.images}.items()}
        problems += [f"data.transforms: {text}" for t in settings.transforms for text in t.problems(sizes)]
    moving = [transform.kind for transform in settings.transforms if transform.kind != "colour"]
    cameras = [name for name, info in pools[0].columns.items() if info.kind == "camera"]
    if moving and cameras:
        problems.append(
            f"data.transforms: {moving[0]} would move the images but not their cameras ({cameras[0]}): leave "
            "one of the two out"
        )
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def _check_curriculum(settings: DataSettings, manifest: Manifest, pools: Sequence[Pool]) -> None:
    """Check that the stages of a curriculum are made of the data's classes, and leave none out."""
    if not settings.curriculum:
        return
    field, classes = "data.curriculum", range(len(manifest.classes))
    if settings.balance != "class":
        raise ConfigError(f"{field}: its stages are classes, each read by itself; set data.balance=class")
    if len({pool.size for pool in pools}) > 1:
        raise ConfigError(f"{field}: the images have several sizes; pack them at one")
    held = {pool.label for pool in pools if pool.label is not None}
    named = [label for stage in settings.curriculum for label in stage.classes]
    if unknown := [label for label in named if label not in classes]:
        raise ConfigError(f"{field}: {unknown[0]} is not a class; the data has 0 to {len(classes) - 1}")
    if empty := [label for label in named if label not in held]:
        raise ConfigError(f"{field}: class {empty[0]} has no samples; leave it out of its stage")
    if missing := sorted(held - set(named)):
        shown = ", ".join(f"{label} ({manifest.classes[label]})" for label in missing[:5])
        raise ConfigError(f"{field}: no stage has class {shown}; add it to a stage, or pack without it")


def _size(image: ImageInfo) -> tuple[int, int]:
    return image.height, image.width


def _pools_of_set(path: str, manifest: Manifest, weight: float, *, balance: bool) -> Iterator[Pool]:
    if balance and not manifest.classes:
        raise ConfigError(f"data.balance=class, but {path} has no labels: leave it out, or pack with labels")
    by_size = sorted(manifest.shards, key=lambda shard: _size(manifest.image_of(shard)))
    for _, group in groupby(by_size, key=lambda shard: _size(manifest.image_of(shard))):
        held = set(group)
        shards = tuple(shard for shard in manifest.shards if shard in held)
        image = manifest.image_of(shards[0])
        if balance:
            yield from _pools_of_classes(path, manifest, shards, weight)
        else:
            samples = tuple(shard.samples for shard in shards)
            share = weight * sum(samples) / manifest.samples
            yield Pool(path, image, len(manifest.classes), shards, samples, share)


def _pools_of_classes(
    path: str, manifest: Manifest, shards: Sequence[ShardInfo], weight: float
) -> Iterator[Pool]:
    everywhere = _counts(path, manifest, manifest.shards).sum(axis=0)
    if not everywhere.any():
        raise DataError(f"{path}: data.balance=class, but no sample has a label that its manifest names")
    counts = _counts(path, manifest, shards)
    for label in np.flatnonzero(counts.sum(axis=0)):
        held = [(shard, int(n)) for shard, n in zip(shards, counts[:, label], strict=True) if n]
        samples = tuple(n for _, n in held)
        share = weight / np.count_nonzero(everywhere) * sum(samples) / int(everywhere[label])
        yield Pool(
            path,
            manifest.image_of(shards[0]),
            len(manifest.classes),
            tuple(shard for shard, _ in held),
            samples,
            float(share),
            int(label),
        )


def _counts(
    path: str, manifest: Manifest, shards: Sequence[ShardInfo]
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Samples of each class in each shard, int64 [shards, classes]; excludes those without a legal label."""
    classes = len(manifest.classes)
    rows = []
    for shard in shards:
        labels = load_shard(path, shard).labels
        rows.append(np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes))
    return np.array(rows, np.int64)
