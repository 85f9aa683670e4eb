"""`sfumato precompute`: runs a frozen encoder over the shards of a data set in a pool of Ray actors.

Actors take whole shards. They can run elsewhere than training will: the encoder's GPU is then free for
the trainers.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sfumato.core.allocator import keep_freed_memory
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.placing import place_set
from sfumato.data.packing.precompute import Files, encode_shard, finish
from sfumato.data.storage.filesystems import is_remote
from sfumato.errors import DataError, SfumatoError
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.commands.precompute_jobs import FloatType, Job, Kind, jobs_of
from sfumato.runtime.runs.display import Display


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
    recipe whose model has frozen text encoders, of which `name` chooses one, or the folder of a text encoder.
    With `dest`, the set is linked or copied there first. `dtype` is that of real numbers; `name` is
    the encoder's name in the manifest and the prefix of its columns. Without it, the encoder is called
    latents, codes or text, and replaces the columns of an earlier encoder of that name. Raises SfumatoError,
    in one line, before anything is computed where that can be known.
    """
    folder = data if is_remote(data) else str((root / data).resolve())
    place = folder if dest is None else dest if is_remote(dest) else str((root / dest).resolve())
    jobs = jobs_of(target, folder, place, kind, root, tokens=tokens, dtype=dtype, name=name)
    manifest = Manifest.load(folder)
    display.stage("precompute")
    count = min(actors, len(manifest.shards))
    place_set(folder, manifest, place)
    whole, bytes_written = manifest, 0
    with _logs(place) as logs, ray_cluster.cluster(max(1, round(count * cpus)), logs, gpus=count * gpus):
        for job in jobs:
            files = _encoded(job, manifest, count, cpus, gpus, display)
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
