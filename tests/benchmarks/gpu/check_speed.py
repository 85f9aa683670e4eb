"""Training steps of networks of published size: images a second, share of the GPU's arithmetic, memory.

Each runs in the real loop (`training.loop.Trainer`, strategy single, batches that are already on the device),
and the same network with the same loss in a bare loop beside it: at most 1.02 of its time is wanted.
`mfu` counts the operations of one forward and backward pass (torch's counter; recomputation does not count)
against the peak of the GPU in that precision, where it is known.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.backends.cuda import flash_sdp_enabled, mem_efficient_sdp_enabled
from torch.utils.flop_counter import FlopCounterMode

from sfumato.core.batch import DataSpec, MicroBatch, Piece
from sfumato.core.family import EmaOf, FamilyConfig, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng
from sfumato.families import config_class
from sfumato.parallel import ParallelSettings, Placement, make
from sfumato.planning import gpus
from sfumato.training.config import TrainSettings
from sfumato.training.loop import Hook, Trainer, install

MOST = 1.02
"""Time of a step in the loop over that of a bare one."""
CLASSES = tuple(str(i) for i in range(1000))


@dataclass(frozen=True, slots=True)
class Subject:
    """A model of published size, and a small one of its kind for a CPU."""

    name: str
    family: str
    model: dict[str, Any]
    data: DataSpec
    batch: int
    small: dict[str, Any]


def _diffusion(network: dict[str, Any], objective: str) -> dict[str, Any]:
    return {"family": "diffusion", "network": network, "objective": {"kind": objective}}


LATENTS = DataSpec(4, 32, 32, CLASSES)
SUBJECTS = (
    Subject(
        "DiT-XL/2 on 32x32x4",
        "diffusion",
        _diffusion({"kind": "dit", "patch": 2, "width": 1152, "depth": 28, "heads": 16}, "rectified_flow"),
        LATENTS,
        32,
        _diffusion({"kind": "dit", "patch": 8, "width": 16, "depth": 1, "heads": 2}, "rectified_flow"),
    ),
    Subject(
        "U-Net of ADM, 64x64",
        "diffusion",
        _diffusion(
            {"channels": [192, 384, 576, 768], "layers_per_block": 3, "attention": [1, 2, 3], "head_dim": 64},
            "ddpm",
        ),
        DataSpec(3, 64, 64, CLASSES),
        16,
        _diffusion({"channels": [8, 16], "head_dim": 8, "norm_groups": 4}, "ddpm"),
    ),
    Subject(
        "U-Net of DDPM, CIFAR-10",
        "diffusion",
        _diffusion(
            {"channels": [128, 256, 256, 256], "layers_per_block": 2, "attention": [1], "head_dim": 256},
            "edm",
        ),
        DataSpec(3, 32, 32, CLASSES[:10]),
        128,
        _diffusion({"channels": [8, 16], "head_dim": 8, "norm_groups": 4}, "edm"),
    ),
)
LAYOUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bf16", {"precision": "bf16"}),
    ("float32", {}),
    ("bf16 compiled", {"precision": "bf16", "compile": True}),
    ("bf16 recomputing", {"precision": "bf16", "activation_checkpointing": True}),
)


def run(check: Any) -> Iterator[tuple[str, bool | None, dict[str, Any]]]:
    """A line a network and layout, the most telling first."""
    yield "attention", None, {"flash": flash_sdp_enabled(), "efficient": mem_efficient_sdp_enabled()}
    torch.backends.cudnn.benchmark = True
    for layout, settings in LAYOUTS[: 1 if check.tiny else None]:
        for subject in SUBJECTS[: 2 if check.tiny else None]:
            yield f"{subject.name}, {layout}", *_measure(check, subject, settings)


def _measure(check: Any, subject: Subject, settings: dict[str, Any]) -> tuple[bool | None, dict[str, Any]]:
    content = subject.small if check.tiny else subject.model
    config = config_class(subject.family).model_validate(content)
    batch = 4 if check.tiny else subject.batch
    steps = (2, 3) if check.tiny else (5, 20)
    bare, operations = _bare(check, config, subject.data, batch, settings, steps)
    ours, memory = _ours(check, config, subject.data, batch, settings, steps)
    figures: dict[str, Any] = {
        "images_per_s": round(batch / ours, 1),
        "ms": round(ours * 1e3, 2),
        "over_bare": round(ours / bare, 3),
        "gib": round(memory / 2**30, 2),
    }
    name = torch.cuda.get_device_name(check.device) if check.device.type == "cuda" else ""
    precision = settings.get("precision", "float32")
    gpu = gpus.of_device(name)
    if gpu is not None:
        figures["mfu"] = round(operations / ours / gpu.peak(precision), 3)
    # A compiled step and a recomputing one do what the bare loop does not.
    comparable = not check.tiny and len(settings) == (1 if "precision" in settings else 0)
    return (ours / bare <= MOST if comparable else None), figures


def _ours(
    check: Any,
    config: FamilyConfig,
    data: DataSpec,
    batch: int,
    settings: dict[str, Any],
    steps: tuple[int, int],
) -> tuple[float, float]:
    """Seconds of a step, the median, and the most bytes allocated."""
    total = sum(steps) * batch
    train = TrainSettings(images=total, batch=batch, log_every=total, preview_samples=0, **settings)
    family = config.build(data)
    strategy = make(
        ParallelSettings(strategy="single"),
        Placement(0, 1, check.device),
        compile=train.compile,
        activation_checkpointing=train.activation_checkpointing,
    )
    install(family, strategy, seed=0)
    marks: list[float] = []

    def mark(progress: Progress) -> None:
        check.synchronise()
        marks.append(time.perf_counter())

    if check.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(check.device)
    micro = MicroBatch(_rows(data, batch, check.device), (Piece(0, 0, batch),))
    trainer = Trainer(family, strategy, train, seed=0, streams=1, hooks=[Hook(batch, mark)])
    trainer.run([micro] for _ in range(sum(steps) + 1))
    memory = torch.cuda.max_memory_allocated(check.device) if check.device.type == "cuda" else 0
    return _median(marks[steps[0] - 1 :]), memory


def _bare(
    check: Any,
    config: FamilyConfig,
    data: DataSpec,
    batch: int,
    settings: dict[str, Any],
    steps: tuple[int, int],
) -> tuple[float, float]:
    """Seconds of a step of a loop without anything else, the median, and a step's operations."""
    family = config.build(data)
    nets: dict[str, nn.Module] = {}
    for name, spec in family.nets.items():
        source = family.nets[spec.source] if isinstance(spec, EmaOf) else spec
        assert isinstance(source, Trainable), "all subjects are trained from nothing"
        nets[name] = source.build().to(check.device)
        if isinstance(spec, EmaOf):
            nets[name].requires_grad_(False)
    (phase,) = family.phases
    spec = family.nets[phase.trains]
    assert isinstance(spec, Trainable), "it is what the phase trains"
    parameters = list(nets[phase.trains].parameters())
    optimizer = spec.optimizer.build(dict(nets[phase.trains].named_parameters()))
    averages = [list(nets[n].parameters()) for n, s in family.nets.items() if isinstance(s, EmaOf)]
    rows, progress = _rows(data, batch, check.device), Progress.at(batch)
    bf16 = settings.get("precision") == "bf16"
    pieces = (Piece(0, 0, batch),)

    def step() -> None:
        rng = StreamRng(
            pieces, rows_per_stream=batch, seed=0, images=0, phase=phase.name, device=check.device
        )
        with torch.autocast(check.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = phase.loss(nets, rows, progress, rng).loss_B.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for average in averages:
                torch._foreach_lerp_(average, parameters, 0.01)

    with FlopCounterMode(display=False) as counter:
        step()
    return _timed(check, step, steps), float(counter.get_total_flops())


def _timed(check: Any, step: Callable[[], None], steps: tuple[int, int]) -> float:
    marks = []
    for _ in range(sum(steps)):
        step()
        check.synchronise()
        marks.append(time.perf_counter())
    return _median(marks[steps[0] - 1 :])


def _median(marks: list[float]) -> float:
    """Of the times between marks."""
    return statistics.median(b - a for a, b in pairwise(marks))


def _rows(data: DataSpec, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, *data.shape, generator=generator) * 2 - 1
    label = torch.randint(data.num_classes, (batch,), generator=generator)
    return {"image": image.to(device), "label": label.to(device)}
