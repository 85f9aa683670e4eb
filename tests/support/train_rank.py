"""One rank of a training run in plain processes, without Ray; rank_server.py starts it.

Trains a member of a family on packed data through the real loop, strategies and checkpoints, and lets rank 0
write all weights and averages as safetensors.
"""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from sfumato.core.progress import Progress
from sfumato.data.columns import spec_of
from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading import local_reader
from sfumato.families import config_class
from sfumato.parallel import ParallelSettings, Placement, make
from sfumato.sampling.model_folder import save_model_folder
from sfumato.training import checkpoint as checkpoints
from sfumato.training.config import TrainSettings
from sfumato.training.loop import Hook, Trainer, install
from sfumato.training.resume import newest_whole
from sfumato.training.store import LocalStore


def train(case: dict) -> None:
    """Train one case: family, variant or model, data, train, strategy; parallel, streams, reading (further
    settings of the data), checkpoints, kill_at, stop_at, model_folder (where the model is exported to)."""
    placement = Placement.current()
    manifest = Manifest.load(case["data"])
    order = {"streams": case.get("streams", 8), "shuffle_window": 100}
    data = DataSettings(path=case["data"], **order, **case.get("reading", {}))
    spec = spec_of(data, manifest)
    settings = TrainSettings(**case["train"])
    reading = {"seed": 3, "batch": settings.batch, "micro_batch": settings.micro_batch}
    kind = config_class(case["family"])
    variants = kind.variants()
    config = case.get("model") or variants[case.get("variant") or next(iter(variants))].model_dump()
    model = kind.model_validate(_steady(config))
    family = model.build(spec)
    strategy = make(
        ParallelSettings(strategy=case["strategy"], **case.get("parallel", {})),
        placement,
        compile=settings.compile,
        activation_checkpointing=settings.activation_checkpointing,
    )
    install(family, strategy, seed=3, first=lambda: next(local_reader.read(data, manifest, **reading))[0])
    losses: list[float] = []
    scratch = Path(case["out"]).parent / "scratch"
    store = LocalStore(Path(case["checkpoints"])) if "checkpoints" in case else None
    hooks = []
    if store is not None:
        writer = checkpoints.Writer(
            store, keep=2, recipe_digest="test", strategy=case["strategy"], scratch=scratch
        )
        hooks.append(
            Hook(
                settings.checkpoint.every,
                lambda p: writer.save({**strategy.state(), **trainer.state()}, images=p.images, step=p.step),
            )
        )
    if "stop_at" in case:
        hooks.append(Hook(case["stop_at"], _stop))
    trainer = Trainer(
        family,
        strategy,
        settings,
        seed=3,
        streams=data.streams,
        hooks=hooks,
        report=lambda p, m: losses.extend(v for k, v in sorted(m.items()) if k.endswith("/loss")),
    )
    if store is not None and (saved := newest_whole(store, scratch)):
        stored = checkpoints.load(store, saved, scratch)
        strategy.load(stored)
        trainer.resume(saved.manifest.images, saved.manifest.step, stored)
    start = trainer.progress.images
    rank = {"rank": placement.rank, "world_size": placement.world_size, "images": start}
    shares = local_reader.read(data, manifest, **reading, **rank)
    with contextlib.suppress(_Stop):
        trainer.run(_killed(shares, case.get("kill_at"), start, settings.batch))
    if store is not None:
        writer.close()
    weights = strategy.weights(family.nets)
    if "model_folder" in case:
        exported = {name: weights[name] for name in family.samplers}
        if placement.rank == 0:
            save_model_folder(
                case["model_folder"], model, spec, exported, name="case", progress=trainer.progress
            )
    if placement.rank == 0:
        flat = {f"{net}/{key}": value for net, state in weights.items() for key, value in state.items()}
        flat |= trainer.state()
        flat["losses"] = torch.tensor(losses, dtype=torch.float64)
        save_file(flat, case["out"])


def _steady(content):
    """The configuration with 1e-5 for every optimizer's eps.

    Adam divides a gradient by its own size. Where that is all rounding, the update is rounding blown up to
    the learning rate, and another order of additions ends elsewhere, whatever the strategy.
    """
    if isinstance(content, dict):
        known = {"eps", "betas"} <= content.keys()
        return {key: 1e-5 if known and key == "eps" else _steady(value) for key, value in content.items()}
    return content


class _Stop(Exception):
    """Training is broken off here, after the checkpoint."""


def _stop(progress: Progress) -> None:
    raise _Stop


def _killed(shares, kill_at, start, batch):
    """The shares, until the process dies on the spot at `kill_at` images."""
    images = start
    for share in shares:
        if kill_at is not None and images >= kill_at:
            os._exit(9)
        yield share
        images += batch


def main(cases: list[dict]) -> None:
    """Train the cases in this process, up to one that fails; a file beside that one's `out` says why."""
    torch.set_num_threads(1)
    # Nobody waits so long: the server ends the ranks that wait for one that has failed.
    dist.init_process_group("gloo", timeout=timedelta(hours=1))
    for case in cases:
        if dist.get_rank() == 0:
            Path(case["out"]).with_suffix(".begun").touch()
        try:
            train(case)
        except Exception:
            # The first to fail writes first; others then fail for the lack of it.
            with Path(case["out"]).with_suffix(".error").open("a") as failure:
                failure.write(f"rank {dist.get_rank()}: {traceback.format_exc()}")
            raise
        gc.collect()
    dist.destroy_process_group()
