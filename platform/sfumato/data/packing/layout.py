"""Which sample goes into which shard, decided before any is packed.

Samples are laid out in the order of a hash of their keys. Shards of a folder sorted by class are then
mixed from the start, which the training order needs: it permutes whole shards and windows inside a stream,
and so never brings together samples that are far apart. A digest of everything that a shard's bytes depend
on identifies it, so that a shard finished before an interruption is recognised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import PIL
from PIL import features

from sfumato.core.seeds import derive
from sfumato.data.format.column_sources import Sources
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.images import Channels
from sfumato.data.packing.dedupe import Duplicate, near_duplicates
from sfumato.data.packing.resizing import Geometry, Look, Size, auto_buckets, check_size, nearest_bucket
from sfumato.data.packing.scan import Seen
from sfumato.data.packing.source import Source, SourceConfig
from sfumato.errors import DataError

_MOST_SAMPLES, _FEWEST_SAMPLES = 8192, 64
_RAW_BYTES = 1 << 27
_STEPS = 8
_FORMAT = 1
"""Increased when this package writes other bytes for the same input."""
TRAIN, VAL = "train", "val"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard to pack: rows of the source, in order, and how their images are stored."""

    split: str
    name: str
    rows: tuple[int, ...]
    geometry: Geometry
    digest: str
    further: tuple[tuple[str, Geometry], ...] = ()
    """How further images are stored, by column."""


@dataclass(frozen=True, slots=True)
class Layout:
    """All shards, and what was left out before packing."""

    shards: tuple[ShardPlan, ...]
    channels: Channels
    faults: tuple[Fault, ...]
    duplicates: tuple[Duplicate, ...]


def layout(
    source: Source, config: SourceConfig, seen: Sequence[Seen], max_pixels: int, shard_size: int | None
) -> Layout:
    """Raises DataError if the images do not go together and the options do not resolve it."""
    channels = channels_of(config, seen)
    sizes, faults = sizes_of(source, config, seen)
    usable = [one for one in seen if one.row in sizes]
    if not usable:
        raise DataError(f"no usable image among {len(source.keys):,}; the first: {faults[0]}")
    duplicates = _duplicates(source, config, usable)
    left = sizes.keys() - {duplicate.row for duplicate in duplicates}
    several = len(set(sizes.values())) > 1
    marks = {one.row: one.mark for one in usable}
    shards: list[ShardPlan] = []
    for split, rows in _splits(source, config, left).items():
        if not rows:
            raise DataError(f"val={config.val} leaves no sample for {split}; choose another share")
        for size, members in _by_size(rows, sizes).items():
            geometry = geometry_of(config, channels, size, max_pixels)
            further = _further(config, size, seen, max_pixels)
            stem = file_stem(config.name) + (f"-{size[0]}x{size[1]}" if several else "")
            count = shard_size or _shard_size(size, channels)
            for number, first in enumerate(range(0, len(members), count)):
                chosen = tuple(members[first : first + count])
                digest = _digest(source, chosen, marks, geometry, (config.columns, further))
                name = f"{stem}-{number:06d}.tar"
                shards.append(ShardPlan(split, name, chosen, geometry, digest, further))
    return Layout(tuple(shards), channels, tuple(faults), tuple(duplicates))


def file_stem(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name) or "data"


def channels_of(config: SourceConfig, seen: Sequence[Seen]) -> Channels:
    """The channels of all images: those of the options, else colour if any image has it."""
    if config.channels != "auto":
        return config.channels
    return 1 if all(one.look.grey for one in seen) else 3


def about_channels(source: Source, config: SourceConfig, seen: Sequence[Seen]) -> str:
    """A note for the user if grey images are stored in colour; empty otherwise."""
    grey = sum(one.look.grey for one in seen)
    if config.channels != "auto" or grey in (0, len(seen)):
        return ""
    return (
        f"{source.description}: {grey:,} of {len(seen):,} images are grey; all are stored in colour "
        "(channels=1 stores all in grey)"
    )


def sizes_of(
    source: Source, config: SourceConfig, seen: Sequence[Seen]
) -> tuple[dict[int, Size], list[Fault]]:
    """The size (width, height) that each image will have, and faults for those that are too small.

    Raises DataError for images of several sizes, unless the options set the size.
    """
    buckets = _buckets(config)
    sizes: dict[int, Size] = {}
    faults = []
    for one in seen:
        have = (one.look.width, one.look.height)
        try:
            sizes[one.row] = _size(have, config, buckets)
        except ImageFault as fault:
            faults.append(Fault(source.description, source.name(one.row), str(fault)))
    if config.size is None and not buckets:
        _check_one_size(source, seen)
    return sizes, faults


def _size(have: Size, config: SourceConfig, buckets: Sequence[Size]) -> Size:
    if buckets:
        return nearest_bucket(have, buckets, config.upscale)
    if config.size is None:
        return have
    check_size(have, (config.size, config.size), config.upscale)
    return config.size, config.size


def _buckets(config: SourceConfig) -> tuple[Size, ...]:
    if not config.buckets:
        return ()
    if config.buckets == ("auto",):
        if config.size is None:
            raise DataError(
                "buckets=auto needs a size: the side of a square of as many pixels as the largest"
            )
        return auto_buckets(config.size, config.bucket_step or max(1, config.size // _STEPS))
    if config.size is not None:
        raise DataError(
            "size and a list of buckets contradict each other; leave size out, or set buckets=auto"
        )
    return tuple(_bucket(text) for text in config.buckets)


def _bucket(text: str) -> Size:
    width, x, height = text.partition("x")
    if not (x and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise DataError(f"buckets: {text!r} is not WIDTHxHEIGHT, for example 640x512")
    return int(width), int(height)


def _check_one_size(source: Source, seen: Sequence[Seen]) -> None:
    first = seen[0]
    other = next((one for one in seen if _wh(one.look) != _wh(first.look)), None)
    if other is not None:
        smallest = min(min(_wh(one.look)) for one in seen)
        sizes = [f"{source.name(one.row)} is {one.look.width}x{one.look.height}" for one in (first, other)]
        raise DataError(
            f"{source.description}: sizes differ: {', '.join(sizes)}; "
            f"give a size (at most {smallest}), or buckets"
        )


def _wh(look: Look) -> Size:
    return look.width, look.height


def _duplicates(source: Source, config: SourceConfig, usable: Sequence[Seen]) -> list[Duplicate]:
    """Duplicates, by rows of the source. Of two that look alike, the one with more pixels stays."""
    if config.dedupe is None:
        return []
    prints = [one.print for one in usable if one.print is not None]
    assert len(prints) == len(usable)
    rank = [(-one.look.width * one.look.height, source.keys[one.row]) for one in usable]
    found = near_duplicates(prints, rank, config.dedupe)
    return [Duplicate(usable[pair.row].row, usable[pair.kept].row, pair.bits) for pair in found]


def _splits(source: Source, config: SourceConfig, left: Iterable[int]) -> dict[str, list[int]]:
    """Rows in packing order, by split. Whether a sample is held out depends only on its key."""
    mixed = sorted(left, key=lambda row: hashlib.blake2b(source.keys[row].encode(), digest_size=16).digest())
    if not config.val:
        return {"": mixed}
    splits: dict[str, list[int]] = {TRAIN: [], VAL: []}
    for row in mixed:
        held_out = derive("val", source.keys[row]) < config.val * 2**63
        splits[VAL if held_out else TRAIN].append(row)
    return splits


def _by_size(rows: Sequence[int], sizes: dict[int, Size]) -> dict[Size, list[int]]:
    found: dict[Size, list[int]] = {}
    for row in rows:
        found.setdefault(sizes[row], []).append(row)
    return dict(sorted(found.items()))


def geometry_of(config: SourceConfig, channels: Channels, size: Size | None, max_pixels: int) -> Geometry:
    """How the options store an image that is to have this size (width, height)."""
    return Geometry(
        channels,
        size,
        config.resample,
        config.crop,
        config.upscale,
        config.format,
        config.quality,
        max_pixels,
    )


def _shard_size(size: Size, channels: int) -> int:
    """Samples per shard: a power of two, at most 128 MiB of raw pixels."""
    fitting = _RAW_BYTES // (size[0] * size[1] * channels)
    return max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, 1 << max(fitting, 1).bit_length() - 1))


def _further(
    config: SourceConfig, size: Size, seen: Sequence[Seen], max_pixels: int
) -> tuple[tuple[str, Geometry], ...]:
    """How further images are stored with images of a size: in the same way, each with its own channels."""
    found = []
    for name, column in config.columns.items():
        if column.kind != "image":
            continue
        channels: Channels
        if column.channels == "auto":
            channels = 1 if all(one.further[name].grey for one in seen if name in one.further) else 3
        else:
            channels = column.channels
        wanted = size if config.size is not None or config.buckets else None
        found.append((name, geometry_of(config, channels, wanted, max_pixels)))
    return tuple(found)


def _digest(
    source: Source,
    rows: Sequence[int],
    marks: Mapping[int, str],
    geometry: Geometry,
    further: tuple[Sources, tuple[tuple[str, Geometry], ...]],
) -> str:
    """Digest of everything that the bytes of a shard depend on, including the encoders' versions."""
    digest = hashlib.sha256()
    encoders = [features.version(name) for name in ("zlib", "jpg", "webp")]
    digest.update(json.dumps([_FORMAT, PIL.__version__, encoders, repr(geometry)]).encode())
    if further[0]:
        digest.update(repr(sorted(further[0].items())).encode() + repr(further[1]).encode())
    for row in rows:
        label = None if source.labels is None else int(source.labels[row])
        digest.update(json.dumps([source.keys[row], marks[row], label]).encode())
    return digest.hexdigest()
