"""Near duplicates by perceptual hash.

The hash of an image is the signs, against their median, of the 8 x 8 lowest cosine frequencies of its grey
32 x 32 thumbnail: pHash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions",
2010). Few differing bits mean the same picture at another size or quality. Flat pictures and drawings
share hashes without being alike, so a pair must also agree in an 8 x 8 colour thumbnail.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
_SIDE = 32
_LOW = 8
_THUMB = 8
ALIKE = 12.0
"""Largest mean absolute difference of the thumbnails, out of 255, at which two images look alike."""


@dataclass(frozen=True, slots=True)
class Print:
    """An image's fingerprint: its 64-bit hash, and a thumbnail uint8 [8, 8, 3] as bytes."""

    bits: int
    thumb: bytes


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Sample `row` was left out in favour of `kept`, from which its hash differs in `bits` bits."""

    row: int
    kept: int
    bits: int


def print_of(image: Image.Image) -> Print:
    """The fingerprint of a decoded image of mode L or RGB."""
    from scipy.fft import dctn

    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    low = dctn(grey, norm="ortho")[:_LOW, :_LOW].ravel()
    ones: NDArray[Any] = low > np.median(low)
    thumb = image.convert("RGB").resize((_THUMB, _THUMB), Image.Resampling.BOX)
    return Print(int.from_bytes(np.packbits(ones).tobytes(), "big"), thumb.tobytes())


def print_of_pixels(pixels_HWC: NDArray[np.uint8]) -> Print:
    """The fingerprint of uint8 pixels [H, W, 1] or [H, W, 3]."""
    return print_of(Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC))


def near_duplicates(prints: Sequence[Print], rank: Sequence[Any], limit: int) -> list[Duplicate]:
    """Which samples to leave out so that no two that remain are near duplicates.

    Samples are taken in the order of `rank` (best first); each is kept unless an earlier kept one
    differs from it in at most `limit` bits and looks alike. The result is in that order.
    """
    bands = list(_bands(limit + 1))
    # Two hashes that differ in at most `limit` of limit + 1 bands of bits agree in at least one of them.
    known: list[dict[int, list[int]]] = [defaultdict(list) for _ in bands]
    found = []
    for row in sorted(range(len(prints)), key=lambda row: rank[row]):
        parts = [(prints[row].bits >> shift) & mask for shift, mask in bands]
        near = {other for part, table in zip(parts, known, strict=True) for other in table.get(part, ())}
        twin = _nearest(prints, row, near, limit)
        if twin is not None:
            found.append(twin)
            continue
        for part, table in zip(parts, known, strict=True):
            table[part].append(row)
    return found


def _bands(count: int) -> Iterator[tuple[int, int]]:
    """Shift and mask of `count` runs of bits that together make up a hash."""
    edges = np.linspace(0, BITS, count + 1).astype(int).tolist()
    for low, high in pairwise(edges):
        yield low, (1 << (high - low)) - 1


def _nearest(prints: Sequence[Print], row: int, others: set[int], limit: int) -> Duplicate | None:
    mine = prints[row]
    distances = sorted(((prints[other].bits ^ mine.bits).bit_count(), other) for other in others)
    for bits, other in distances:
        if bits > limit:
            return None
        if _alike(mine.thumb, prints[other].thumb):
            return Duplicate(row, other, bits)
    return None


def _alike(one: bytes, other: bytes) -> bool:
    return difference_of(one, other) <= ALIKE


def difference_of(one: bytes, other: bytes) -> float:
    """Mean absolute difference of two thumbnails, out of 255."""
    difference = np.frombuffer(one, np.uint8).astype(int) - np.frombuffer(other, np.uint8)
    return float(np.abs(difference).mean())
