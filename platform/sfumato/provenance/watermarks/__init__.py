"""Watermarks: 32 bits in the pixels of a picture, which copies, compression and small changes leave there.

One scheme a file; see `core/components.py`. A scheme hides a message and reads it again. What it reads from
a picture without one agrees with a message by chance: each bit with probability 1/2, independently,
whatever the picture is, if the message was drawn at random. So the p-value of k of n equal bits is the
upper tail of the binomial distribution, exactly; a scheme that looks in m places multiplies it by m
(Bonferroni).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sfumato.core.components import Component, Components
from sfumato.core.config import Config

Images = NDArray[np.uint8]
"""uint8 [N, H, W, C] with 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
Bits = NDArray[np.uint8]
"""0 or 1 each, [32]."""
LENGTH = 32
"""Bits of a message."""


@dataclass(frozen=True, slots=True)
class Detection:
    """`matched` of 32 bits agree with the message, None where bits cannot be read; `p_value` is the
    probability of so much agreement without the mark."""

    matched: int | None
    p_value: float


class Message(Config):
    """What a mark says."""

    packages: ClassVar[tuple[str, ...]] = ("scipy",)
    """What it needs besides Sfumato's sampling side; a registered model asks for them."""

    message: str = Field(
        "876f6936",
        pattern=r"^[0-9a-f]{8}$",
        description="What is hidden: 32 bits, as eight hexadecimal digits. Draw your own at random.",
    )

    @property
    def bits(self) -> Bits:
        """The message, first bit first."""
        return np.unpackbits(np.frombuffer(bytes.fromhex(self.message), np.uint8))


class WatermarkConfig(Component, Message):
    """A scheme and its message. `least` is the smallest side of a picture that can carry it, in pixels."""

    least: ClassVar[int]
    runs_code: ClassVar[str] = ""
    """What its file is, where that is a program: only a user's own recipe, or `--trust`, may name one."""

    @abstractmethod
    def build(self) -> Watermark:
        """Ready to mark; raises ConfigError where a package is missing."""


class Watermark:
    """A scheme at work."""

    @abstractmethod
    def embed(self, images_NHWC: Images, bits: Bits) -> Images:
        """The images with the message, of the same shape; the same input gives the same bytes."""

    @abstractmethod
    def detect(self, image_HWC: Images, bits: Bits) -> Detection:
        """How far one image [H, W, C] agrees with the message."""


def p_value(matched: int, places: int = 1) -> float:
    """The probability that a random message agrees in `matched` bits or more in any of so many places."""
    from scipy.stats import binom

    return min(1.0, places * float(binom.sf(matched - 1, LENGTH, 0.5)))


WATERMARKS: Components[Any] = Components("sfumato.provenance.watermarks", WatermarkConfig, default="spread")
