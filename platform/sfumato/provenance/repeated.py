"""A message of 32 bits in a scheme that hides more of them: repeated, and read by the sum of its copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.provenance.watermarks import LENGTH, Bits


def repeated(bits: Bits, length: int) -> NDArray[np.float32]:
    """0 or 1, [length]: the message as often as it fits, then zeros.

    Raises ValueError for less room than the message needs.
    """
    if length < LENGTH:
        raise ValueError(f"room for {length} bits, the message has {LENGTH}")
    found = np.zeros(length, np.float32)
    copies = length // LENGTH
    found[: copies * LENGTH] = np.tile(bits, copies)
    return found


def voted(logits: Any) -> NDArray[np.bool_]:
    """The 32 bits in log odds [length], each by the sum over its copies."""
    values = np.asarray(logits, np.float64)
    copies = len(values) // LENGTH
    found: NDArray[np.bool_] = values[: copies * LENGTH].reshape(copies, LENGTH).sum(0) > 0
    return found
