"""`sfumato precompute`: runs a frozen encoder over the shards of a data set in a pool of Ray actors.

Actors take whole shards, also those of a model that writes captions. They can run elsewhere than training
will: the encoder's GPU is then free for the trainers.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.core.allocator import keep_freed_memory
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.captioning import finish_captions
from sfumato.data.packing.placing import place_set
from sfumato.data.packing.precompute import Files, finish
from sfumato.data.storage.filesystems import is_remote
from sfumato.errors import DataError, SfumatoError
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.commands.precompute_jobs import (
    CaptionJob,
    FloatType,
    Job,
    Kind,
    caption_job,
    jobs_of,
)
from sfumato.runtime.runs.display import Display

AnyJob = Job | CaptionJob


class Encoder:
    """An actor that encodes shards. It returns errors as values, because Ray would bury them."""

    def __init__(self, job: AnyJob, gpu: bool, threads: int) -> None:
        keep_freed_memory(of_any_size=True)
        torch.set_num_threads(threads)
        self._job = job
        self._manifest = Manifest.load(job.folder)
        self._encoder = job.encoder("cuda" if gpu else "cpu")

    def encode(self, number: int) -> tuple[int, Any]:
        try:
            return number, self._job.perform(number, self._manifest, self._encoder)
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
    recipe whose model has frozen text encoders, of which `name` chooses one, or the folder of a text encoder.
    With `dest`, the set is linked or copied there first. `dtype` is that of real numbers; `name` is
    the encoder's name in the manifest and the prefix of its columns. Without it, the encoder is called
    latents, codes or text, and replaces the columns of an earlier encoder of that name. Raises SfumatoError,
    in one line, before anything is computed where that can be known.
    """
    folder, place = _places(data, dest, root)
    jobs = jobs_of(target, folder, place, kind, root, tokens=tokens, dtype=dtype, name=name)
    manifest = Manifest.load(folder)
    display.stage("precompute")
    place_set(folder, manifest, place)
    whole, bytes_written = manifest, 0
    with _cluster(place, actors, cpus, gpus, manifest) as pool:
        for job in jobs:
            files: list[Files] = _performed(job, manifest, pool, display)
            whole = finish(manifest, files, job.addition)
            bytes_written += sum(file.bytes for part in files for file in part.values())
    columns = {name: info for job in jobs for name, info in job.addition.columns.items()}
    display.done(f"{', '.join(columns)} of {whole.samples:,} samples in {place}")
    return {
        "folder": place,
        "samples": whole.samples,
        "shards": len(whole.shards),
        "bytes": bytes_written,
        "encoder": jobs[0].addition.encoder.digest,
        "arrays": {name: list(info.shape) for name, info in columns.items()},
    }


def caption(
    target: str,
    data: str,
    dest: str | None = None,
    *,
    tokens: int | None = None,
    name: str | None = None,
    prompt: str | None = None,
    actors: int,
    cpus: float,
    gpus: float,
    root: Path,
    display: Display,
) -> dict[str, Any]:
    """Let the image-to-text model in the folder `target` write a caption for every image.

    The column of texts is `name`, or `text`: then they are the captions of the data set. `tokens` is the most
    of a caption; `prompt` is what the model is asked. Everything else as `precompute`.
    """
    folder, place = _places(data, dest, root)
    job = caption_job((root / target).resolve(), folder, place, tokens=tokens, name=name, prompt=prompt)
    manifest = Manifest.load(folder)
    display.stage("caption")
    place_set(folder, manifest, place)
    with _cluster(place, actors, cpus, gpus, manifest) as pool:
        _performed(job, manifest, pool, display)
    whole, empty = finish_captions(manifest, job.work)
    display.done(f"captions of {whole.samples:,} images in {place}")
    if empty:
        display.note(f"{empty:,} of {whole.samples:,} captions are empty")
    return {
        "folder": place,
        "samples": whole.samples,
        "column": job.work.name,
        "empty": empty,
        "encoder": job.work.encoder.digest,
    }


def _places(data: str, dest: str | None, root: Path) -> tuple[str, str]:
    """Where the data set is, and where columns go."""
    folder = data if is_remote(data) else str((root / data).resolve())
    return folder, folder if dest is None else dest if is_remote(dest) else str((root / dest).resolve())


@dataclass(frozen=True, slots=True)
class _Pool:
    """How many actors, and what each has."""

    actors: int
    cpus: float
    gpus: float


@contextlib.contextmanager
def _cluster(dest: str, actors: int, cpus: float, gpus: float, manifest: Manifest) -> Iterator[_Pool]:
    """A cluster for as many of the actors as there are shards."""
    count = min(actors, len(manifest.shards))
    with _logs(dest) as logs, ray_cluster.cluster(max(1, round(count * cpus)), logs, gpus=count * gpus):
        yield _Pool(count, cpus, gpus)


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


def _performed(job: AnyJob, manifest: Manifest, pool: _Pool, display: Display) -> list[Any]:
    """What the job gives for all shards in the manifest's order, although actors finish them in any order."""
    import ray
    from ray.util import ActorPool

    remote: Any = ray.remote(Encoder).options(
        num_cpus=pool.cpus, num_gpus=pool.gpus, max_restarts=2, max_task_retries=2
    )
    threads = max(1, int(pool.cpus))
    workers = [remote.remote(job, pool.gpus > 0, threads) for _ in range(pool.actors)]
    found: dict[int, Any] = {}
    done = 0
    try:
        shared: Any = ActorPool(workers)  # annotated only for lists of one type
        numbers: Any = range(len(manifest.shards))
        for number, result in shared.map_unordered(lambda actor, n: actor.encode.remote(n), numbers):
            if isinstance(result, str):
                raise DataError(result)
            found[number] = result
            done += manifest.shards[number].samples
            display.update(done, manifest.samples)
    finally:
        for worker in workers:
            ray.kill(worker)
    return [found[number] for number in numbers]
