"""State that moves between strategies: tensors by name, whole, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from sfumato.errors import CheckpointError


def check(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError naming the network and the first tensor that is missing, left over or misshapen.

    Shapes are compared where the mapping knows them without reading (`shapes`), else by looking.
    """
    wanted, given = set(targets), {name for name in state if name.startswith("nets/")}
    if missing := sorted(wanted - given):
        raise _misfit(missing[0], "is not in it")
    if left := sorted(given - wanted):
        raise _misfit(left[0], "is in it, but not in the network")
    shapes = getattr(state, "shapes", None)
    for name, target in targets.items():
        found = tuple(shapes[name] if shapes is not None else state[name].shape)
        if found != tuple(target.shape):
            raise _misfit(name, f"has shape {list(found)} there, and {list(target.shape)} here")


def moments(state: Mapping[str, Tensor], net: str, key: str) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's tensors for one parameter, by kind; none where it has not taken a step."""
    for kind in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
        name = f"optim/{net}/{key}/{kind}"
        if name in state:
            yield kind, state[name]


def _misfit(name: str, what: str) -> CheckpointError:
    _, net, key = name.split("/", 2)
    return CheckpointError(f"network {net!r} does not fit the checkpoint: {key} {what}")
