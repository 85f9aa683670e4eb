"""Layouts of networks over ranks: one strategy per file, all behind `strategy.Strategy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sfumato.core.finding import Folder
from sfumato.errors import CapabilityError
from sfumato.parallel.config import ParallelSettings
from sfumato.parallel.strategy import Placement, Strategy, StrategyOptions


class _Strategies(Mapping[str, type[Strategy]]):
    """Built-in ones by the name of their file, any by its import path; imported on demand."""

    def __init__(self) -> None:
        self._folder: Folder[type[Strategy]] = Folder("sfumato.parallel.strategies", "COMPONENT", Strategy)

    def __getitem__(self, name: str) -> type[Strategy]:
        return self._folder.find(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._folder.names())

    def __len__(self) -> int:
        return len(self._folder.names())


STRATEGIES: Mapping[str, type[Strategy]] = _Strategies()

__all__ = ["STRATEGIES", "ParallelSettings", "Placement", "Strategy", "StrategyOptions", "make"]


def make(
    settings: ParallelSettings,
    placement: Placement,
    *,
    compile: bool = False,
    activation_checkpointing: bool = False,
) -> Strategy:
    """Build the strategy that a recipe names. Raises CapabilityError if this machine cannot run it."""
    kind = STRATEGIES[settings.strategy]
    if reason := kind.unavailable():
        raise CapabilityError(reason)
    options = StrategyOptions(
        compile=compile,
        activation_checkpointing=activation_checkpointing,
        offload=settings.offload,
        own=kind.settings(settings),
    )
    return kind(placement, options)
