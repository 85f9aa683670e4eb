"""The families of tests/examples: which data each learns from, and the case that `train_rank` trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRAIN = {
    "images": 640,
    "batch": 64,
    "micro_batch": 16,
    "log_every": 64,
    "preview_samples": 0,
    "clip_grad_norm": 0.5,
    "checkpoint": {"every": 128},
}
SHORT = {"images": 192, "checkpoint": {"every": 64}}
"""For those with a U-Net, which takes its time in bfloat16 on a CPU."""


@dataclass(frozen=True)
class Example:
    """A family, by the module in tests/examples that has its configuration."""

    config: str
    data: str = "digits"
    reading: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    rounding: float = 1e-5
    """By how much results may differ between one process and several."""

    @property
    def stop(self) -> int:
        """Images, about the middle of training, at which runs are stopped or killed."""
        return int({**TRAIN, **self.train}["images"]) * 2 // 3 // 64 * 64


# What an adapter's base computes in bfloat16 is rounded to 4e-3 of itself, by kernels that depend on where
# FSDP has put the parameters; the adapter itself moves by some 3e-3.
EXAMPLES = {
    "adapter": Example("AdapterConfig", train=SHORT, rounding=2e-4),
    "captions": Example("CaptionsConfig", reading={"columns": ["text"]}),
    "distilled": Example("DistilledConfig", train=SHORT),
    "edges": Example(
        "EdgesConfig",
        reading={"columns": ["control"], "transforms": [{"kind": "flip"}, {"kind": "crop", "pad": 1}]},
    ),
    "growth": Example("GrowthConfig"),
    "late_phase": Example("LatePhaseConfig"),
    "rays": Example("RaysConfig", data="views", reading={"columns": ["camera"]}),
    "running_mean": Example("RunningMeanConfig"),
}


@dataclass(frozen=True)
class Prepared:
    """What all examples need: packed sets by name, and by an example's name the pretrained networks that its
    configuration refers to."""

    sets: Mapping[str, Path]
    pretrained: Mapping[str, Mapping[str, Any]]

    def case(self, name: str, strategy: str = "single", **more: Any) -> dict[str, Any]:
        """What `train_rank.train` trains."""
        example = EXAMPLES[name]
        path = f"{name}:{example.config}"
        return {
            "family": path,
            "model": {"family": path, **self.pretrained.get(name, {})},
            "data": str(self.sets[example.data]),
            "reading": dict(example.reading),
            "train": {**TRAIN, **example.train},
            "strategy": strategy,
            **more,
        }
