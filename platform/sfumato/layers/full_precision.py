"""Modules of libraries that must compute in float32, whatever autocast and the strategy have chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def full_precision(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Without autocast, and with float32 in place of parameters that a strategy gathers in bfloat16.

    Gradients reach the module's own parameters.
    """
    swapped = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None and parameter.dtype in (torch.bfloat16, torch.float16)
    ]
    for owner, name, parameter in swapped:
        owner._parameters[name] = parameter.float()  # type: ignore[assignment]  # a copy that is no leaf
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for owner, name, parameter in swapped:
            owner._parameters[name] = parameter
