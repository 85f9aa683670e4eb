"""Where networks live while they train: one strategy a file, all behind `strategy.Strategy`."""

from __future__ import annotations

from sfumato.errors import CapabilityError
from sfumato.parallel.config import ParallelSettings
from sfumato.parallel.ddp import Ddp
from sfumato.parallel.deepspeed import Zero1, Zero2, Zero3
from sfumato.parallel.fsdp import Fsdp
from sfumato.parallel.single import Single
from sfumato.parallel.strategy import Options, Placement, Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (Single, Ddp, Fsdp, Zero1, Zero2, Zero3)
}

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
