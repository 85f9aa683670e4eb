"""Keeps a family's state while it trains: adds up the sums of the losses, and advances once per step.

Sums are float64. Each rank adds up its own micro-batches. Every rank then adds the ranks' sums in rank order,
so the state has the same bits everywhere without a broadcast. Another number of ranks adds in another
order, which changes the last bits of a float64.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sfumato.core.progress import Progress
from sfumato.core.state import HasState, State, initial, mismatch
from sfumato.errors import CheckpointError, TrainingError

log = logging.getLogger(__name__)

PREFIX = "state/"


class FamilyState:
    """The state of one family on this rank; empty for a family without state."""

    def __init__(
        self, family: object, device: torch.device, sum_over_ranks: Callable[[Tensor], Tensor]
    ) -> None:
        self._family = family if isinstance(family, HasState) else None
        self._first = {name: value.to(device) for name, value in initial(family).items()}
        self._sum_over_ranks = sum_over_ranks
        self._pending: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self.values: State = self._first
        """Replaced by every step, never changed in place."""

    def add(self, phase: str, sums: Mapping[str, Tensor]) -> None:
        """Add the sums of one micro-batch to those of the update under way."""
        if sums and self._family is None:
            raise ValueError(
                f"phase {phase!r} returns sums, but its family has no state (core.state.HasState)"
            )
        for name, value in sums.items():
            value = value.detach().double()
            self._pending[name] = self._pending[name] + value if name in self._pending else value

    def commit(self, kept: Tensor) -> None:
        """Close an update: its sums count if `kept`, a bool on the device, is true."""
        for name, value in self._pending.items():
            value = torch.where(kept, value, 0.0)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._pending.clear()

    @torch.no_grad()
    def advance(self, progress: Progress) -> State:
        """The state after the step that ended at `progress`. Every rank calls it."""
        if self._family is None:
            return self.values
        sums = self._summed()
        self._sums.clear()
        found = dict(self._family.advance(self.values, sums, progress))
        if wrong := mismatch(self.values, found):
            raise ValueError(f"advance of {type(self._family).__name__} returns another state: {wrong}")
        self.values = {name: value.detach() for name, value in found.items()}
        return self.values

    def check(self) -> None:
        """Raises TrainingError if the state is not finite; waits for the device."""
        floats = {name: value for name, value in self.values.items() if value.is_floating_point()}
        if not floats:
            return
        fine = torch.stack([value.isfinite().all() for value in floats.values()]).tolist()
        if bad := [name for name, finite in zip(floats, fine, strict=True) if not finite]:
            raise TrainingError(f"state {bad[0]!r} is not finite: the last checkpoint is from before")

    def stored(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, the same on every rank."""
        return stored(self.values)

    def load(self, checkpoint: Mapping[str, Tensor]) -> None:
        """Take the state from a checkpoint. A checkpoint of an older version has none: the initial values
        stay.

        Raises CheckpointError if it is the state of another family.
        """
        found = restored_state(self._family, checkpoint)
        self.values = {name: value.to(self._first[name].device) for name, value in found.items()}
        self._pending.clear()
        self._sums.clear()

    def _summed(self) -> dict[str, Tensor]:
        """The step's sums over all ranks, in one exchange."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        flat = self._sum_over_ranks(torch.cat([self._sums[name].flatten() for name in names]))
        parts = torch.split(flat, [self._sums[name].numel() for name in names])
        return {name: part.view_as(self._sums[name]) for name, part in zip(names, parts, strict=True)}


def stored(values: State) -> dict[str, Tensor]:
    """A state under its names in a checkpoint."""
    return {f"{PREFIX}{name}": value for name, value in values.items()}


def restored_state(family: object, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a family that a checkpoint holds, on the CPU; the initial values for a checkpoint of an
    older version, without state.

    Raises CheckpointError if it is the state of another family.
    """
    first = initial(family)
    names = [name for name in checkpoint if name.startswith(PREFIX)]
    if first and not names:
        log.warning("the checkpoint holds no state of the family: it starts from its initial values")
        return first
    found = {name.removeprefix(PREFIX): checkpoint[name].clone() for name in names}
    if wrong := mismatch(first, found):
        raise CheckpointError(f"the family's state does not fit the checkpoint: {wrong}")
    return found
