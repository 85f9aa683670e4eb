"""The derivative of a network's output along a path, in forward mode.

The derivative serves as a target, without a gradient of its own. So the network runs once inside `tangent`,
without a graph, and once more outside as always: whatever wraps the network synchronises its gradients, and
no strategy needs to know of it. (Taken together, derivative and graph would bypass the hooks of
DistributedDataParallel, as the authors of MeanFlow warn of their own code.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook


def tangent(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], directions: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """`function(*inputs)` and its derivative along `directions`, both without a gradient.

    Attention runs in its plain form: the fused kernels have no forward derivative.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _contiguous_norms(), forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(*pair)  # type: ignore[no-untyped-call]
            for pair in zip(inputs, directions, strict=True)
        ]
        value, change = forward_ad.unpack_dual(function(*duals))  # type: ignore[no-untyped-call]
    return value, torch.zeros_like(value) if change is None else change


@contextmanager
def _contiguous_norms() -> Iterator[None]:
    """Group normalisation of a transposed tensor: its derivative wants contiguous memory (torch 2.13)."""

    def copied(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not isinstance(module, nn.GroupNorm):
            return None
        return tuple(part.clone(memory_format=torch.contiguous_format) for part in inputs)

    hook = register_module_forward_pre_hook(copied)  # type: ignore[arg-type]  # torch: it may return inputs
    try:
        yield
    finally:
        hook.remove()
