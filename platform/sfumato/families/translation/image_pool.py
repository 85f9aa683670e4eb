"""A pool of translated images, so that discriminators also see those of earlier translators (Shrivastava et
al. 2017; Zhu, Park, Isola, Efros 2017, app. 7.1).

The pool is state of the family. Every row draws a place of its domain's part of the pool, and whether it
swaps: with probability 1/2 its discriminator then sees the image that lies there, and the row's own takes its
place. A place that holds nothing yet takes the row's image, and the discriminator sees that image itself.
Where several rows of a global batch want one place, all see what lies there and it stays, so that a step's
outcome is a sum over rows and does not depend on how many workers share them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.rng import Rng
from sfumato.core.state import State

IMAGES, HELD, WANTED = "pool.images", "pool.held", "pool.wanted"


class Swapped(NamedTuple):
    """What discriminators see [B, C, H, W], and the sums that advance the pool."""

    seen_BCHW: Tensor
    sums: dict[str, Tensor]


class ImagePool:
    """`size` places for each of two domains."""

    def __init__(self, size: int, data: DataSpec) -> None:
        self._size, self._shape = size, (2 * size, *data.shape)

    @property
    def first(self) -> State:
        """Empty."""
        return {IMAGES: torch.zeros(self._shape), HELD: torch.zeros(self._shape[0], dtype=torch.int64)}

    def swap(self, made_BCHW: Tensor, second_B: Tensor, state: State, rng: Rng) -> Swapped:
        """`second_B` says which images were made from the second domain: they lie in the first one's part."""
        place_B = rng.integers(self._size) + self._size * second_B.long()
        swaps_B = rng.uniform() < 0.5
        held_B = state[HELD].to(place_B.device)[place_B] > 0
        old_BCHW = state[IMAGES].to(made_BCHW)[place_B]
        seen_BCHW = torch.where((held_B & swaps_B)[:, None, None, None], old_BCHW, made_BCHW)
        enters_B = (swaps_B | ~held_B).double()
        images = torch.zeros(self._shape, dtype=torch.float64, device=made_BCHW.device)
        wanted = torch.zeros(self._shape[0], dtype=torch.float64, device=made_BCHW.device)
        images.index_add_(0, place_B, made_BCHW.detach().double() * enters_B[:, None, None, None])
        wanted.index_add_(0, place_B, enters_B)
        return Swapped(seen_BCHW, {IMAGES: images, WANTED: wanted})

    def advance(self, state: State, sums: State) -> State:
        """The pool after a step: the images that one row alone put in their place have entered."""
        if WANTED not in sums:
            return state
        enters = sums[WANTED] == 1
        new = sums[IMAGES].to(state[IMAGES])
        return {
            IMAGES: torch.where(enters.to(new.device)[:, None, None, None], new, state[IMAGES]),
            HELD: torch.where(enters, torch.ones_like(state[HELD]), state[HELD]),
        }
