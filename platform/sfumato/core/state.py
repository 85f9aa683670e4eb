"""The state of a family: small values that change while it trains and that all ranks agree on.

A running mean, a codebook that follows the data, the probability of an augmentation: what is neither a weight
nor a function of the images seen. The losses return sums over their rows (`LossOut.sums`). The loop adds them
up over the micro-batches and the ranks and advances the state once a step. It is handed to every method of
the family as `progress.state`, it is in checkpoints and model folders, and it is not averaged.
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
    """A family with state, beside `core.family.Family`."""

    @property
    def state(self) -> State:
        """The values before the first step, by name, the same in every process: float32, float64 or int64."""
        ...

    def advance(self, state: State, sums: State, progress: Progress) -> State:
        """The state after a step that ended at `progress`: a pure function, of the same names and shapes.

        `sums` holds float64 sums over the rows of the step's global batches, under the names that the losses
        gave them. A name is absent where no phase that gives it had its turn, and zero where the update was
        left out because its gradient was not finite: put a count of rows among the sums to tell.
        """
        ...


def initial(family: object) -> dict[str, Tensor]:
    """Copies of the state's first values; nothing for a family without state.

    Raises ValueError for a name or a type that a checkpoint cannot hold.
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
    """How two states differ in names, shapes or types, in a few words; None where they agree."""
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
