"""Where networks live while they train: one strategy a file, all behind `strategy.Strategy`."""

from __future__ import annotations

from sfumato.parallel.config import ParallelSettings
from sfumato.parallel.ddp import Ddp
from sfumato.parallel.single import Single
from sfumato.parallel.strategy import Placement, Strategy

STRATEGIES: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in (Single, Ddp)}

__all__ = ["STRATEGIES", "ParallelSettings", "Placement", "Strategy"]
