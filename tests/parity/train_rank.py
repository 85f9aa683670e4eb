"""One rank of a training run in plain processes, without Ray: `python train_rank.py JOB.json`.

Trains a family's `tiny()` on packed data through the real loop, strategy and checkpoints, and lets rank 0
write all weights and averages as safetensors.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from sfumato.data import local
from sfumato.data.config import DataSettings
from sfumato.data.manifest import Manifest
from sfumato.families import config_class
from sfumato.parallel import STRATEGIES, Placement
from sfumato.training import checkpoint as checkpoints
from sfumato.training.config import TrainSettings
from sfumato.training.loop import Hook, Trainer, install
from sfumato.training.store import LocalStore


def main(job: dict) -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    placement = Placement.current()
    manifest = Manifest.load(job["data"])
    data = DataSettings(path=job["data"], streams=job.get("streams", 8), shuffle_window=100)
    settings = TrainSettings(**job["train"])
    family = config_class(job["family"]).tiny().build(manifest.spec)
    strategy = STRATEGIES[job["strategy"]](placement)
    first = local.read(data, manifest, seed=3, batch=settings.batch, micro_batch=settings.micro_batch)
    install(family, strategy, seed=3, first=lambda: next(first)[0])
    losses: list[float] = []
    scratch = Path(job["out"]).parent / "scratch"
    store = LocalStore(Path(job["checkpoints"])) if "checkpoints" in job else None
    hooks = []
    if store is not None:
        writer = checkpoints.Writer(
            store, keep=2, recipe_digest="test", strategy=job["strategy"], scratch=scratch
        )
        hooks.append(
            Hook(
                settings.checkpoint.every,
                lambda p: writer.save(strategy.state(), images=p.images, step=p.step),
            )
        )
    trainer = Trainer(
        family,
        strategy,
        settings,
        seed=3,
        streams=data.streams,
        hooks=hooks,
        report=lambda p, m: losses.append(next(v for k, v in m.items() if k.endswith("/loss"))),
    )
    if store is not None and (saved := checkpoints.newest_whole(store, scratch)):
        strategy.load(checkpoints.load(store, saved, scratch))
        trainer.resume(saved.manifest.images, saved.manifest.step)
    start = trainer.progress.images
    shares = local.read(
        data,
        manifest,
        seed=3,
        batch=settings.batch,
        micro_batch=settings.micro_batch,
        rank=placement.rank,
        world_size=placement.world_size,
        images=start,
    )
    trainer.run(_killed(shares, job.get("kill_at"), start, settings.batch))
    if store is not None:
        writer.close()
    weights = strategy.weights(family.nets)
    if placement.rank == 0:
        flat = {f"{net}/{key}": value for net, state in weights.items() for key, value in state.items()}
        flat["losses"] = torch.tensor(losses, dtype=torch.float64)
        save_file(flat, job["out"])
    if dist.is_initialized():
        dist.destroy_process_group()


def _killed(shares, kill_at, start, batch):
    """The shares, until the process dies on the spot at `kill_at` images."""
    images = start
    for share in shares:
        if kill_at is not None and images >= kill_at:
            os._exit(9)
        yield share
        images += batch


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
