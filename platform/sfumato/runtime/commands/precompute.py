"""`sfumato precompute`: a frozen encoder over the shards of a data set, by a pool of Ray actors.

Actors take whole shards. They need not be where training will run: the encoder wants a GPU that the trainers
then have for themselves.
"""

from __future__ import annotations

import contextlib
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
from sfumato.core.first_stage import (
    CODES,
    LATENT_MEAN,
    LATENT_STD,
    FirstStage,
    FirstStageConfig,
    StageSpec,
    Tokenizer,
)
from sfumato.data.format.encoder_info import ArrayInfo, EncoderInfo
from sfumato.data.format.manifest import Manifest, ShardInfo, verify
from sfumato.data.packing.precompute import (
    Draft,
    ShardEncoder,
    check_destination,
    check_draft,
    draft_of,
    encode_shard,
    finish,
)
from sfumato.data.reading.batches import to_batch
from sfumato.data.storage.filesystems import is_remote
from sfumato.errors import ConfigError, DataError, SfumatoError
from sfumato.families import config_class
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.commands import text_encoder
from sfumato.runtime.commands.text_encoder import TextEncoder, TextModel
from sfumato.runtime.runs import first_stage, pretrained
from sfumato.runtime.runs.display import Display
from sfumato.sampling.pretrained_files import load_stored

Kind = Literal["auto", "latents", "codes", "text"]


class AutoencoderEncoder:
    """A `ShardEncoder`: latents as mean and standard deviation, or codes, of a first stage."""

    def __init__(self, stage: FirstStageConfig, info: EncoderInfo, device: str = "cpu") -> None:
        opened = stage.open(config_class)
        assert opened.stored is not None, "a first stage that was looked up is stored somewhere"
        self.info = info
        self._device = device
        self._network = opened.spec.build()
        load_stored(self._network, opened.stored)
        self._network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(
        self, image_NHWC: NDArray[np.uint8], captions: Sequence[str | None]
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays that `info` names; captions are not looked at."""
        image_NCHW = to_batch({"image": image_NHWC})["image"].to(self._device)
        network = self._network
        if self.info.arrays[0].name == CODES:
            assert isinstance(network, Tokenizer)
            return {CODES: network.codes(image_NCHW).cpu().numpy()}
        assert isinstance(network, FirstStage)
        latent = network.encode(image_NCHW)
        return {LATENT_MEAN: latent.mean.float().cpu().numpy(), LATENT_STD: latent.std.float().cpu().numpy()}


@dataclass(frozen=True, slots=True)
class Job:
    """What an actor is told: plain data that travels to any node."""

    model: FirstStageConfig | TextModel
    info: EncoderInfo
    folder: str
    draft: Draft

    def encoder(self, device: str) -> ShardEncoder:
        if isinstance(self.model, TextModel):
            return TextEncoder(self.model, self.info, device)
        return AutoencoderEncoder(self.model, self.info, device)


class Encoder:
    """An actor: encodes the shards that it is given. Errors travel as values, Ray would bury them."""

    def __init__(self, job: Job, gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self._job = job
        self._manifest = Manifest.load(job.folder)
        self._encoder = job.encoder("cuda" if gpu else "cpu")

    def encode(self, number: int) -> tuple[int, ShardInfo | str]:
        try:
            job = self._job
            return number, encode_shard(job.folder, self._manifest, number, self._encoder, job.draft)
        except SfumatoError as error:
            return number, str(error)


def precompute(
    target: str,
    data: str,
    dest: str,
    *,
    kind: Kind,
    tokens: int | None = None,
    actors: int,
    cpus: float,
    gpus: float,
    root: Path,
    display: Display,
) -> dict[str, Any]:
    """Encode the data set in `data` into `dest`, each a folder or URI; what came of it, as plain data.

    `target` is a recipe with a first stage, or a run or model folder that can be one; with `kind` text, the
    folder of a text encoder.
    Raises SfumatoError, in one line, before anything is computed where that can be known.
    """
    folder, dest = (place if is_remote(place) else str((root / place).resolve()) for place in (data, dest))
    check_destination(dest)
    job = _job(target, folder, dest, kind, tokens, root)
    manifest = Manifest.load(folder)
    check_draft(job.draft)
    display.stage("precompute")
    count = min(actors, len(manifest.shards))
    with _logs(job.draft) as logs, ray_cluster.cluster(max(1, round(count * cpus)), logs, gpus=count * gpus):
        shards = _encoded(job, manifest, count, cpus, gpus, display)
    whole = finish(manifest, shards, job.info, job.draft)
    display.done(f"{whole.samples:,} samples, {len(whole.shards)} shards in {dest}")
    return {
        "folder": dest,
        "samples": whole.samples,
        "shards": len(whole.shards),
        "bytes": whole.bytes,
        "encoder": job.info.digest,
        "arrays": {array.name: list(array.shape) for array in job.info.arrays},
    }


def _job(target: str, folder: str, dest: str, kind: Kind, tokens: int | None, root: Path) -> Job:
    """What there is to do, once it is known to be possible. Raises SfumatoError in one line."""
    if tokens is not None and kind != "text":
        raise ConfigError("--tokens has an effect with --arrays text alone; leave it out")
    model: FirstStageConfig | TextModel
    if kind == "text":
        model = text_encoder.look_up((root / target).resolve(), tokens)
        info = model.info(target, verify(folder))
    else:
        model = _stage(target, root)
        info = _stage_info(model, verify(folder), target, kind)
    return Job(model, info, folder, draft_of(dest, info))


@contextlib.contextmanager
def _logs(draft: Draft) -> Iterator[Path]:
    """Where Ray's logs go: kept, beside a local destination, when the work fails."""
    if is_remote(draft.dest):
        with tempfile.TemporaryDirectory(prefix="sfumato-logs-") as scratch:
            yield Path(scratch)
        return
    logs = Path(f"{draft.place}-logs")
    yield logs
    shutil.rmtree(logs, ignore_errors=True)


def _stage(target: str, root: Path) -> FirstStageConfig:
    """The first stage that a recipe has, or that a run is."""
    if not target.endswith((".yaml", ".yml")):
        return first_stage.look_up(FirstStageConfig(run=target), root)
    recipe = pretrained.resolved(recipes.load(target), root)
    found = first_stage.stages_of(recipe)
    if len(found) != 1:
        has = (
            f"several first stages ({', '.join(field for field, _ in found)})" if found else "no first stage"
        )
        raise ConfigError(f"{target}: its model has {has}; name a recipe with one, or the run itself")
    return found[0][1]


def _stage_info(stage: FirstStageConfig, manifest: Manifest, target: str, kind: Kind) -> EncoderInfo:
    if problems := stage.problems(manifest.spec, config_class):
        raise ConfigError(*(line.removeprefix("model.first_stage.run: ") for line in problems))
    if manifest.of_its_size() is not manifest:
        raise ConfigError(
            f"{manifest.name} has images of several sizes, and the arrays of an encoder have one shape: pack "
            "with a size instead of buckets"
        )
    assert stage.model is not None
    assert stage.digest is not None
    spec = stage.open(config_class).spec
    return EncoderInfo(
        run=target,
        digest=stage.digest,
        family=stage.model.family,
        images=manifest.digest,
        transform="pixels / 127.5 - 1",
        arrays=_arrays(spec, kind, target),
    )


def _arrays(spec: StageSpec, kind: Kind, target: str) -> tuple[ArrayInfo, ...]:
    if kind == "codes" and not spec.num_codes:
        raise ConfigError(f"--arrays codes: {target} has no codes; use --arrays latents")
    if spec.num_codes and kind != "latents":
        return (ArrayInfo(name=CODES, dtype="int64", shape=spec.latent[1:]),)
    return tuple(
        ArrayInfo(name=name, dtype="float32", shape=spec.latent) for name in (LATENT_MEAN, LATENT_STD)
    )


def _encoded(
    job: Job, manifest: Manifest, actors: int, cpus: float, gpus: float, display: Display
) -> list[ShardInfo]:
    """All shards, in the manifest's order, as actors finish them in any."""
    import ray
    from ray.util import ActorPool

    threads = max(1, int(cpus))
    remote: Any = ray.remote(Encoder).options(
        num_cpus=cpus, num_gpus=gpus, max_restarts=2, max_task_retries=2
    )
    workers = [remote.remote(job, gpus > 0, threads) for _ in range(actors)]
    found: dict[int, ShardInfo] = {}
    done = 0
    try:
        pool: Any = ActorPool(workers)  # annotated for lists of one type alone
        numbers: Any = range(len(manifest.shards))
        for number, result in pool.map_unordered(lambda actor, n: actor.encode.remote(n), numbers):
            if isinstance(result, str):
                raise DataError(result)
            found[number] = result
            done += result.samples
            display.update(done, manifest.samples)
    finally:
        for worker in workers:
            ray.kill(worker)
    return [found[number] for number in numbers]
