"""Activation checkpointing (Chen et al. 2016): a block's activations are recomputed in the backward pass.

The recomputation sees what the first pass saw and has no side effects: the state of torch's global generator
is restored (dropout), and so are the block's buffers (running statistics, power iterations), which a second
pass would update a second time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module) -> None:
    """Make `block` keep only its inputs. In place; names of parameters and buffers do not change."""
    forward = block.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        seen = [buffer.clone() for buffer in block.buffers()]

        def contexts() -> tuple[AbstractContextManager[None], _BuffersAs]:
            return nullcontext(), _BuffersAs(block, seen)

        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    block.forward = recomputed


class _BuffersAs:
    """Sets the block's buffers to `values` inside, and restores them afterwards; may be entered again."""

    def __init__(self, block: nn.Module, values: list[Tensor]) -> None:
        self._block = block
        self._values = values

    @torch.no_grad()
    def __enter__(self) -> None:
        self._now = [buffer.clone() for buffer in self._block.buffers()]
        self._set(self._values)

    @torch.no_grad()
    def __exit__(self, *exception: object) -> None:
        self._set(self._now)

    def _set(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self._block.buffers(), values, strict=True):
            buffer.copy_(value)
