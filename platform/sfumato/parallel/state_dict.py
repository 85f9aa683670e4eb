"""State that moves between strategies: whole tensors by name, whichever strategy wrote them.

An optimizer's state is everything it keeps for a parameter: tensors of the parameter's shape and single
numbers, under its own names. A Python number is stored as a tensor under a name that marks its type
(`step#int`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sfumato.errors import CheckpointError

_NUMBERS: dict[str, tuple[type, torch.dtype]] = {
    "bool": (bool, torch.bool),
    "int": (int, torch.int64),
    "float": (float, torch.float64),
}
_MARK = "#"
_NOT_STATE = {"params", "lr"}
"""Entries of a parameter group that are not settings."""


@runtime_checkable
class InRows(Protocol):
    """A state that is stored elsewhere: shapes are known without reading, and rows are read separately."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def rows(self, name: str, start: int, stop: int) -> Tensor: ...


def check(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError naming the network and a tensor that is missing, unknown or misshapen."""
    wanted, given = set(targets), {name for name in state if name.startswith("nets/")}
    if missing := sorted(wanted - given):
        raise _misfit(missing[0], "is missing from it")
    if left := sorted(given - wanted):
        raise _misfit(left[0], "is in it, but not in the network")
    for name, target in targets.items():
        found = shape(state, name)
        if found != tuple(target.shape):
            raise _misfit(name, f"has shape {list(found)} there, and {list(target.shape)} here")


def shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a whole tensor of the state; does not read a stored tensor."""
    return state.shapes[name] if isinstance(state, InRows) else tuple(state[name].shape)


def rows(state: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` (exclusive) of a tensor of the state, as many as exist."""
    return state.rows(name, start, stop) if isinstance(state, InRows) else state[name][start:stop]


def elements(state: Mapping[str, Tensor], name: str, offset: int, numel: int) -> Tensor:
    """Elements `offset` to `offset + numel` (exclusive) of a flattened tensor of the state: [numel]."""
    row = max(1, math.prod(shape(state, name)[1:]))
    first, last = offset // row, -(-(offset + numel) // row)
    return rows(state, name, first, last).reshape(-1).narrow(0, offset - first * row, numel)


def entry(net: str, key: str, kind: str, value: Tensor | float) -> tuple[str, Tensor]:
    """Name and tensor under which a part of an optimizer's state is stored."""
    if isinstance(value, Tensor):
        return f"optim/{net}/{key}/{kind}", value
    for name, (python, dtype) in _NUMBERS.items():
        if type(value) is python:
            return f"optim/{net}/{key}/{kind}{_MARK}{name}", torch.tensor(value, dtype=dtype)
    raise AssertionError(f"{kind} is not a number: `kept` lets only numbers through")


def kept(
    optimizer: torch.optim.Optimizer, net: str, key: str, found: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor | float]]:
    """What an optimizer keeps for a parameter, by kind; None counts as absent.

    Raises CheckpointError for a value that is neither a tensor nor a number: a run that resumed without it
    would compute something else.
    """
    for kind, value in found.items():
        if value is None:  # SGD without momentum
            continue
        if not isinstance(value, Tensor | bool | int | float) or "/" in kind or _MARK in kind:
            raise CheckpointError(
                f"optimizer {type(optimizer).__name__} of network {net!r} keeps {kind!r} for parameter "
                f"{key}, which is neither tensor nor number: a checkpoint cannot hold it; choose another "
                "optimizer"
            )
        yield kind, value


def check_settings(optimizer: torch.optim.Optimizer, net: str, before: list[dict[str, Any]]) -> None:
    """Raises CheckpointError if an optimizer has changed settings of its own groups, which no checkpoint
    holds; `before` is what `settings` returned when it was built."""
    for then, now in zip(before, settings(optimizer), strict=True):
        for name, value in now.items():
            if name not in then or then[name] != value:
                raise CheckpointError(
                    f"optimizer {type(optimizer).__name__} of network {net!r} changes its setting {name!r} "
                    "while it trains: a checkpoint cannot hold that; choose another optimizer"
                )


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The numbers and strings among the settings of each parameter group, without the learning rate."""
    return [
        {
            name: value
            for name, value in group.items()
            if name not in _NOT_STATE and isinstance(value, bool | int | float | str | tuple)
        }
        for group in optimizer.param_groups
    ]


def moments(state: Mapping[str, Tensor], net: str) -> dict[str, dict[str, str]]:
    """The names under which the optimizer's state of a network is stored, by parameter and kind (with the
    mark of a number). A parameter is absent if the optimizer had not taken a step."""
    prefix = f"optim/{net}/"
    found: dict[str, dict[str, str]] = {}
    for name in state:
        if name.startswith(prefix):
            key, _, kind = name.removeprefix(prefix).rpartition("/")
            found.setdefault(key, {})[kind] = name
    return found


def restored(kind: str, stored: Tensor) -> tuple[str, Tensor | float]:
    """The inverse of `entry`: the kind without its mark, and a tensor or a Python number."""
    plain, mark, number = kind.partition(_MARK)
    if not mark:
        return kind, stored
    python, _ = _NUMBERS[number]
    value: float = python(stored.item())
    return plain, value


def misshapen(net: str, key: str, kind: str, shape: Any, strategy: str) -> CheckpointError:
    """The error for a part of an optimizer's state that cannot be cut or assembled like its parameter."""
    return CheckpointError(
        f"the optimizer of network {net!r} keeps {kind!r} of shape {list(shape)} for parameter {key}, which "
        f"is not the parameter's: parallel.strategy={strategy} cannot carry it; use parallel.strategy=ddp"
    )


def _misfit(name: str, what: str) -> CheckpointError:
    _, net, key = name.split("/", 2)
    return CheckpointError(f"network {net!r} does not fit the checkpoint: {key} {what}")
