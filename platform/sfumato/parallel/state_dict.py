"""State that moves between strategies: tensors by name, whole, whoever wrote them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from sfumato.errors import CheckpointError


@runtime_checkable
class InRows(Protocol):
    """A state that lies elsewhere: shapes are known without reading, and rows are read on their own."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def rows(self, name: str, start: int, stop: int) -> Tensor: ...


def check(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError naming the network and a tensor that is missing, left over or misshapen."""
    wanted, given = set(targets), {name for name in state if name.startswith("nets/")}
    if missing := sorted(wanted - given):
        raise _misfit(missing[0], "is not in it")
    if left := sorted(given - wanted):
        raise _misfit(left[0], "is in it, but not in the network")
    for name, target in targets.items():
        found = shape(state, name)
        if found != tuple(target.shape):
            raise _misfit(name, f"has shape {list(found)} there, and {list(target.shape)} here")


def moments(state: Mapping[str, Tensor], net: str, key: str) -> Iterator[tuple[str, str]]:
    """The optimizer's tensors for one parameter: kind and name; none where it has not taken a step."""
    for kind in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
        name = f"optim/{net}/{key}/{kind}"
        if name in state:
            yield kind, name


def shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a whole tensor of the state; a stored one is not read for it."""
    return state.shapes[name] if isinstance(state, InRows) else tuple(state[name].shape)


def rows(state: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` (exclusive) of a tensor of the state, as many of them as there are."""
    return state.rows(name, start, stop) if isinstance(state, InRows) else state[name][start:stop]


def elements(state: Mapping[str, Tensor], name: str, offset: int, numel: int) -> Tensor:
    """Elements `offset` to `offset + numel` (exclusive) of a flattened tensor of the state: [numel]."""
    row = max(1, math.prod(shape(state, name)[1:]))
    first, last = offset // row, -(-(offset + numel) // row)
    return rows(state, name, first, last).reshape(-1).narrow(0, offset - first * row, numel)


def _misfit(name: str, what: str) -> CheckpointError:
    _, net, key = name.split("/", 2)
    return CheckpointError(f"network {net!r} does not fit the checkpoint: {key} {what}")
