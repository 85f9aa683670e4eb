"""The state of a family: small values that change while it trains and that all ranks agree on.

Examples are a running mean, a codebook that follows the data, or the probability of an augmentation: values
that are neither weights nor functions of the images seen. The losses return sums over their rows
(`LossOut.sums`). The loop adds them up over micro-batches and ranks, and advances the state once per step.
Every method of the family sees the state as `progress.state`. Checkpoints and model folders hold it; it is
not averaged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sfumato.core.progress import Progress

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_DTYPES = (torch.float32, torch.float64, torch.int64)

State = Mapping[str, Tensor]


@runtime_checkable
class HasState(Protocol):
    """A family with state; an addition to `core.family.Family`."""

    @property
    def state(self) -> State:
        """The initial values by name, the same in every process: float32, float64 or int64."""
        ...

    def advance(self, state: State, sums: State, progress: Progress) -> State:
        """The state after a step that ended at `progress`: a pure function that keeps names and shapes.

        `sums` holds float64 sums over the rows of the step's global batches, under the names that the losses
        gave them. A name is absent if no phase that returns it had its turn. A sum is zero if the update was
        skipped because its gradient was not finite; include a count of rows among the sums to detect this.
        """
        ...


def initial(family: object) -> dict[str, Tensor]:
    """Copies of the state's initial values; empty for a family without state.

    Raises ValueError for a name or a dtype that a checkpoint cannot hold.
    """
    if not isinstance(family, HasState):
        return {}
    values = dict(family.state)
    for name, value in values.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"state {name!r}: a name consists of letters, digits and _ . -")
        if value.dtype not in _DTYPES:
            raise ValueError(f"state {name!r} is {value.dtype}; it must be float32, float64 or int64")
    return {name: value.detach().clone() for name, value in values.items()}


def mismatch(expected: State, found: State) -> str | None:
    """A short account of how two states differ in names, shapes or dtypes; None if they agree."""
    if missing := sorted(set(expected) - set(found)):
        return f"{missing[0]!r} is missing"
    if extra := sorted(set(found) - set(expected)):
        return f"{extra[0]!r} is unknown"
    for name, value in expected.items():
        other = found[name]
        if (other.shape, other.dtype) != (value.shape, value.dtype):
            return (
                f"{name!r} has shape {list(other.shape)} ({other.dtype}) instead of {list(value.shape)} "
                f"({value.dtype})"
            )
    return None
