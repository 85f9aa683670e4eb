"""Where networks live while they train: one strategy a file, all behind `strategy.Strategy`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from sfumato.errors import CapabilityError
from sfumato.parallel.config import ParallelSettings
from sfumato.parallel.strategy import Options, Placement, Strategy

_CLASSES = {
    "single": "single.Single",
    "ddp": "ddp.Ddp",
    "fsdp": "fsdp.Fsdp",
    "zero1": "deepspeed.Zero1",
    "zero2": "deepspeed.Zero2",
    "zero3": "deepspeed.Zero3",
}


class _Strategies(Mapping[str, type[Strategy]]):
    """Imported when asked for: torch's sharding alone takes a quarter of a worker's imports."""

    def __getitem__(self, name: str) -> type[Strategy]:
        module, found = _CLASSES[name].split(".")
        kind: type[Strategy] = getattr(importlib.import_module(f"{__name__}.{module}"), found)
        return kind

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


STRATEGIES: Mapping[str, type[Strategy]] = _Strategies()

__all__ = ["STRATEGIES", "Options", "ParallelSettings", "Placement", "Strategy", "make"]


def make(
    settings: ParallelSettings,
    placement: Placement,
    *,
    compile: bool = False,
    activation_checkpointing: bool = False,
) -> Strategy:
    """The strategy that a recipe names. Raises CapabilityError where this machine cannot run it."""
    kind = STRATEGIES[settings.strategy]
    if reason := kind.unavailable():
        raise CapabilityError(reason)
    options = Options(
        compile=compile,
        activation_checkpointing=activation_checkpointing,
        offload=settings.offload,
        reshard_after_forward=settings.fsdp.reshard_after_forward,
        bf16_parameters=settings.fsdp.bf16_parameters,
    )
    return kind(placement, options)
