"""Models that read a message in pictures, wherever these come from."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from sfumato.core.family import Nets

LENGTH = 32
"""Bits of a message."""


@runtime_checkable
class ReadsMessages(Protocol):
    """A family with a network that reads 32 bits in an image."""

    @property
    def message(self) -> str | None:
        """The message that its own pictures carry, as eight hexadecimal digits; None if that is any."""
        ...

    def read_message(self, nets: Nets, image_NCHW: Tensor) -> Tensor:
        """Log odds of each bit being 1 [N, 32], in images of any size in [-1, 1]."""
        ...
