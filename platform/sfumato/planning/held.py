"""The bytes that a rank holds of a model's networks under a strategy, and those that a step sends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sfumato.core.config import Config
from sfumato.parallel.capabilities import Part
from sfumato.parallel.strategy import Strategy
from sfumato.planning.networks import Network, Parameter

_AHEAD = 2
"""Blocks whose parameters are gathered at once: that which computes, and the next."""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes on the fullest rank. `gathered` is what comes and goes where parameters are cut."""

    parameters: int
    gradients: int
    optimizer: int
    averages: int
    frozen: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(
            (self.parameters, self.gradients, self.optimizer, self.averages, self.frozen, self.gathered)
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """A strategy with its own settings on so many ranks."""

    strategy: type[Strategy]
    own: Config
    ranks: int

    @property
    def over(self) -> int:
        """Over how many ranks parameters, or whatever it cuts, are cut."""
        return self.strategy.cut_over(self.ranks, self.own)

    def held(self, networks: Iterable[Network]) -> Held:
        """What a rank holds of these networks, apart from activations."""
        networks = tuple(networks)
        trained = [n for n in networks if n.role == "trained"]
        averages = [n for n in networks if n.role == "average"]
        frozen = [n for n in networks if n.role == "frozen"]
        masters = self._of(trained, Part.OPTIMIZER, "gradient") if self.strategy.masters else 0
        return Held(
            parameters=self._of(trained, Part.PARAMETERS, "size") + sum(n.buffers for n in trained),
            gradients=self._of(trained, Part.GRADIENTS, "gradient"),
            optimizer=self._of(trained, Part.OPTIMIZER, "state") + masters,
            averages=self._of(averages, Part.AVERAGES, "size") + sum(n.buffers for n in averages),
            frozen=self._of([n for n in frozen if n.spread], Part.PARAMETERS, "size")
            + sum(n.size for n in frozen if not n.spread)
            + sum(n.buffers for n in frozen),
            gathered=self._gathered(networks) if Part.PARAMETERS in self.strategy.cut else 0,
        )

    def _of(self, networks: Iterable[Network], part: Part, what: str) -> int:
        cut = self.over if part in self.strategy.cut else 1
        return sum(self._piece(p, getattr(p, what), cut) for n in networks for p in n.parameters)

    def _piece(self, parameter: Parameter, size: int, cut: int) -> int:
        """The fullest rank's bytes of something that has `size` bytes for the whole parameter."""
        numbers = 1
        for side in parameter.shape:
            numbers *= side
        if cut == 1 or not numbers:
            return size
        return round(size * self.strategy.piece(parameter.shape, cut) / numbers)

    def _gathered(self, networks: Iterable[Network]) -> int:
        """The parameters of blocks around the one that computes, and the gradient of one before it is cut."""
        networks = tuple(networks)
        passive = max((n.unit for n in networks if n.spread), default=0)
        trained = max((n.unit for n in networks if n.role == "trained"), default=0)
        whole = max((n.size for n in networks if n.role == "trained"), default=0)
        if self.strategy.keeps_gathered(self.own):
            return whole + trained
        return _AHEAD * passive + trained
