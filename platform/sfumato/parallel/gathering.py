"""Gathers a sharded network for all its methods, not only `forward`: autoencoders are used by `encode`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method


def gather_for_methods(module: nn.Module) -> None:
    """Make every public method of an FSDP module gather its parameters and free them afterwards. In place.

    A method called by another one finds the parameters gathered, and leaves them gathered.
    """
    inside = 0

    def outermost(gathering: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def method(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            inside += 1
            try:
                return (gathering if inside == 1 else plain)(*args, **kwargs)
            finally:
                inside -= 1

        return method

    for name in _methods(type(module)):
        plain = getattr(module, name)
        if name == "forward":  # its hooks gather, whichever method calls it
            module.forward = outermost(plain, plain)
            continue
        register_fsdp_forward_method(module, name)
        setattr(module, name, outermost(getattr(module, name), plain))


def _methods(kind: type) -> list[str]:
    """The public methods that a network has beyond those of every `nn.Module`."""
    found = {
        name
        for base in kind.__mro__
        if issubclass(base, nn.Module) and base is not nn.Module
        for name, value in vars(base).items()
        if inspect.isfunction(value) and not name.startswith("_") and not hasattr(nn.Module, name)
    }
    return ["forward", *sorted(found)]
