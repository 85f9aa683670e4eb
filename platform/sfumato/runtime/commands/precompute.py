"""`sfumato precompute`: runs a frozen encoder over the shards of a data set in a pool of Ray actors.

Actors take whole shards. They can run elsewhere than training will: the encoder's GPU is then free for
the trainers.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato import recipe as recipes
from sfumato.core.allocator import keep_freed_memory
from sfumato.core.batch import to_device
from sfumato.core.columns import NAME
from sfumato.core.first_stage import (
    CODES,
    LATENT_MEAN,
    LATENT_STD,
    FirstStage,
    FirstStageConfig,
    Tokenizer,
)
from sfumato.data.format.columns import ColumnInfo, EncoderInfo
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.packing.placing import check_destination, place_set
from sfumato.data.packing.precompute import Addition, Files, ShardEncoder, encode_shard, finish
from sfumato.data.reading.batches import to_batch
from sfumato.data.storage.filesystems import is_remote
from sfumato.errors import ConfigError, DataError, SfumatoError
from sfumato.families import config_class
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.commands import text_encoder
from sfumato.runtime.commands.text_encoder import TextEncoder, TextModel
from sfumato.runtime.commands.text_of_recipe import RecipeText, RecipeTextEncoder, of_recipe
from sfumato.runtime.runs import first_stage, pretrained
from sfumato.runtime.runs.display import Display
from sfumato.sampling.pretrained_files import load_stored

_RECIPE = (".yaml", ".yml")
Kind = Literal["auto", "latents", "codes", "text"]
FloatType = Literal["float32", "float16", "bfloat16"]


class AutoencoderEncoder:
    """A `ShardEncoder`: latents as mean and standard deviation, or codes, of a first stage."""

    def __init__(
        self, stage: FirstStageConfig, columns: Mapping[str, ColumnInfo], device: str = "cpu"
    ) -> None:
        opened = stage.open(config_class)
        assert opened.stored is not None, "a resolved first stage has a place"
        self.columns = columns
        self._device = torch.device(device)
        self._network = opened.spec.build()
        load_stored(self._network, opened.stored)
        self._network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(
        self, image_NHWC: NDArray[np.uint8], captions: Sequence[str | None]
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays of `columns`; captions are ignored."""
        image_NCHW = to_device(to_batch({"image": image_NHWC}), self._device)["image"]
        network, names = self._network, tuple(self.columns)
        if len(names) == 1:
            assert isinstance(network, Tokenizer)
            return {names[0]: network.codes(image_NCHW).cpu().numpy()}
        assert isinstance(network, FirstStage)
        latent = network.encode(image_NCHW)
        return dict(zip(names, (part.float().cpu().numpy() for part in latent), strict=True))


@dataclass(frozen=True, slots=True)
class Job:
    """An actor's instructions: plain data that travels to any node."""

    model: FirstStageConfig | TextModel | RecipeText
    folder: str
    addition: Addition

    def encoder(self, device: str) -> ShardEncoder:
        if isinstance(self.model, TextModel):
            return TextEncoder(self.model, self.addition.columns, device)
        if isinstance(self.model, RecipeText):
            return RecipeTextEncoder(self.model, self.addition.columns, device)
        return AutoencoderEncoder(self.model, self.addition.columns, device)


class Encoder:
    """An actor that encodes shards. It returns errors as values, because Ray would bury them."""

    def __init__(self, job: Job, gpu: bool, threads: int) -> None:
        keep_freed_memory(of_any_size=True)
        torch.set_num_threads(threads)
        self._job = job
        self._manifest = Manifest.load(job.folder)
        self._encoder = job.encoder("cuda" if gpu else "cpu")

    def encode(self, number: int) -> tuple[int, Files | str]:
        try:
            job = self._job
            return number, encode_shard(job.folder, self._manifest, number, self._encoder, job.addition)
        except SfumatoError as error:
            return number, str(error)


def precompute(
    target: str,
    data: str,
    dest: str | None = None,
    *,
    kind: Kind,
    tokens: int | None = None,
    dtype: FloatType = "float32",
    name: str | None = None,
    actors: int,
    cpus: float,
    gpus: float,
    root: Path,
    display: Display,
) -> dict[str, Any]:
    """Add an encoder's outputs to the data set in `data` as columns; returns the outcome as plain data.

    `target` is a recipe with a first stage, or a run or model folder that can be one; with `kind` text, a
    recipe whose model has a frozen text encoder, of this `name` if it has several, or the folder of a text
    encoder. With `dest`, the set is linked or copied there first. `dtype` applies to columns of real numbers;
    `name` is the encoder's name in the manifest and the prefix of its columns. Without it, the encoder is
    called latents, codes or text, and replaces the columns of an earlier encoder of that name. Raises
    SfumatoError, in one line, before anything is computed where that can be known.
    """
    folder = data if is_remote(data) else str((root / data).resolve())
    place = folder if dest is None else dest if is_remote(dest) else str((root / dest).resolve())
    job = _job(target, folder, place, kind, root, tokens=tokens, dtype=dtype, name=name)
    manifest = Manifest.load(folder)
    display.stage("precompute")
    count = min(actors, len(manifest.shards))
    place_set(folder, manifest, place)
    with _logs(place) as logs, ray_cluster.cluster(max(1, round(count * cpus)), logs, gpus=count * gpus):
        files = _encoded(job, manifest, count, cpus, gpus, display)
    whole = finish(manifest, files, job.addition)
    display.done(f"{', '.join(job.addition.columns)} of {whole.samples:,} samples in {place}")
    return {
        "folder": place,
        "samples": whole.samples,
        "shards": len(whole.shards),
        "bytes": sum(file.bytes for part in files for file in part.values()),
        "encoder": job.addition.encoder.digest,
        "arrays": {name: list(info.shape) for name, info in job.addition.columns.items()},
    }


def _job(
    target: str,
    folder: str,
    dest: str,
    kind: Kind,
    root: Path,
    *,
    tokens: int | None = None,
    dtype: FloatType = "float32",
    name: str | None = None,
) -> Job:
    """The plan of the work, after checking that it is possible. Raises SfumatoError in one line."""
    if tokens is not None and kind != "text":
        raise ConfigError(f"--tokens={tokens} counts the tokens of texts: add --arrays text, or leave it out")
    if name is not None and not re.match(NAME, name):
        raise ConfigError(f"--name: lower-case letters, digits and _; got {name!r}")
    manifest = verify(folder)
    model: FirstStageConfig | TextModel | RecipeText
    if kind == "text" and target.endswith(_RECIPE):
        if tokens is not None:
            raise ConfigError("--tokens: the recipe says how many; leave it out")
        model = of_recipe(pretrained.resolved(recipes.load(target), root), name, target)
        info, columns, usual, name = model.info(target, manifest), model.columns(dtype), model.name, None
    elif kind == "text":
        model = text_encoder.look_up((root / target).resolve(), tokens)
        info, columns, usual = model.info(target, manifest), model.columns(dtype), "text"
    else:
        model = _stage(target, root)
        info, columns = _stage_info(model, manifest, target), _stage_columns(model, kind, dtype, target)
        usual = CODES if CODES in columns else "latents"
    if name is not None:
        columns = {f"{name}_{column}": column_info for column, column_info in columns.items()}
    addition = Addition(dest, name or usual, info, columns)
    check_destination(folder, manifest, addition)
    return Job(model, folder, addition)


@contextlib.contextmanager
def _logs(dest: str) -> Iterator[Path]:
    """Where Ray's logs go: kept, next to a local destination, if the work fails."""
    if is_remote(dest):
        with tempfile.TemporaryDirectory(prefix="sfumato-logs-") as scratch:
            yield Path(scratch)
        return
    place = Path(dest)
    logs = place.with_name(f".{place.name}-precomputing-logs")
    yield logs
    shutil.rmtree(logs, ignore_errors=True)


def _stage(target: str, root: Path) -> FirstStageConfig:
    """The first stage of a recipe, or a run as a first stage."""
    if not target.endswith(_RECIPE):
        return first_stage.named(target, root)
    recipe = pretrained.resolved(recipes.load(target), root)
    found = first_stage.stages_of(recipe)
    if len(found) != 1:
        has = (
            f"several first stages ({', '.join(field for field, _ in found)})" if found else "no first stage"
        )
        raise ConfigError(f"{target}: its model has {has}; name a recipe with one, or the run itself")
    return found[0][1]


def _stage_info(stage: FirstStageConfig, manifest: Manifest, target: str) -> EncoderInfo:
    if problems := stage.problems(manifest.spec, config_class, field=""):
        raise ConfigError(*problems)
    if manifest.of_its_size() is not manifest:
        raise ConfigError(
            f"{manifest.name} has images of several sizes, and the arrays of an encoder have one shape: pack "
            "with a size instead of buckets"
        )
    assert stage.model is not None
    assert stage.digest is not None
    return EncoderInfo(
        run=target,
        digest=stage.digest,
        family=stage.model.family,
        images=manifest.digest,
        transform="pixels / 127.5 - 1",
    )


def _stage_columns(
    stage: FirstStageConfig, kind: Kind, dtype: FloatType, target: str
) -> dict[str, ColumnInfo]:
    spec = stage.open(config_class).spec
    if kind == "codes" and not spec.num_codes:
        raise ConfigError(f"--arrays codes: {target} has no codes; use --arrays latents")
    if spec.num_codes and kind != "latents":
        return {CODES: ColumnInfo(kind="array", dtype="int64", shape=spec.latent[1:], stored="side")}
    info = ColumnInfo(kind="array", dtype=dtype, shape=spec.latent, stored="side")
    return {LATENT_MEAN: info, LATENT_STD: info}


def _encoded(
    job: Job, manifest: Manifest, actors: int, cpus: float, gpus: float, display: Display
) -> list[Files]:
    """All shards in the manifest's order, although actors finish them in any order."""
    import ray
    from ray.util import ActorPool

    threads = max(1, int(cpus))
    remote: Any = ray.remote(Encoder).options(
        num_cpus=cpus, num_gpus=gpus, max_restarts=2, max_task_retries=2
    )
    workers = [remote.remote(job, gpus > 0, threads) for _ in range(actors)]
    found: dict[int, Files] = {}
    done = 0
    try:
        pool: Any = ActorPool(workers)  # annotated only for lists of one type
        numbers: Any = range(len(manifest.shards))
        for number, result in pool.map_unordered(lambda actor, n: actor.encode.remote(n), numbers):
            if isinstance(result, str):
                raise DataError(result)
            found[number] = result
            done += manifest.shards[number].samples
            display.update(done, manifest.samples)
    finally:
        for worker in workers:
            ray.kill(worker)
    return [found[number] for number in numbers]
