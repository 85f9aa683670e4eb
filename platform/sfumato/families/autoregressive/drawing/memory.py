"""What a causal transformer remembers of the positions so far while it draws: its blocks' keys and values.

The rows of a batch may know different numbers of positions, as speculative decoding leaves them. There are
two layouts of the same contents:

    static  room for every position of every row, from the start
    paged   pages of 16 positions of any row, taken when a row reaches them and given back when it forgets
            them or leaves (PagedAttention: Kwon et al. 2023, sec. 4); a row that leaves moves nothing
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PAGE = 16
"""Positions of a page."""
Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From a block's new keys and values [B, heads, fresh, D] to those of all positions [B, heads, S, D]."""


class Window(NamedTuple):
    """The positions that a pass computes, and which positions each of them sees."""

    places: Tensor
    """int64 [B, fresh], or [1, fresh] if they are the same in all rows."""
    seen: Tensor | None
    """bool [B or 1, 1, fresh, S]; None if all of them are seen."""


class Memory(ABC):
    """Keys and values of a batch of rows. A pass calls `open`, `extended` for each block, and `close`."""

    def __init__(self, rows: int, room: int) -> None:
        """For at most `room` positions of each of `rows` rows."""
        self.room = room
        self.lengths = [0] * rows
        self._fresh = 0
        self._places = torch.zeros(0)

    def open(self, fresh: int, device: torch.device) -> Window:
        """The `fresh` positions of each row that come after those known."""
        self._fresh = fresh
        self._reserve([length + fresh for length in self.lengths])
        starts = self.lengths[:1] if self._even else self.lengths
        first_B1 = torch.tensor(starts, device=device)[:, None]
        self._places = first_B1 + torch.arange(fresh, device=device)
        if self._even and fresh == 1:
            return Window(self._places, None)
        all_S = torch.arange(self._span, device=device)
        return Window(self._places, (all_S <= self._places[..., None])[:, None])

    def extended(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a block, these included, [B, heads, S, D] each."""
        return self._kept(2 * block, keys), self._kept(2 * block + 1, values)

    def close(self) -> None:
        """The pass is over: its positions are known."""
        self.lengths = [length + self._fresh for length in self.lengths]

    def keep(self, lengths: Sequence[int]) -> None:
        """Forget all but so many first positions of each row."""
        assert all(new <= old for new, old in zip(lengths, self.lengths, strict=True)), "what is not known"
        self.lengths = list(lengths)

    def stay(self, rows: Sequence[int]) -> None:
        """Only these rows stay; they are numbered anew."""
        self.lengths = [self.lengths[row] for row in rows]

    @property
    def _even(self) -> bool:
        """Whether all rows know equally many positions."""
        return all(one == two for one, two in pairwise(self.lengths))

    @property
    def _span(self) -> int:
        """S: the most positions of a row, with those being computed."""
        return max(self.lengths) + self._fresh

    @abstractmethod
    def _reserve(self, lengths: Sequence[int]) -> None:
        """Make room for so many positions of each row."""

    @abstractmethod
    def _kept(self, number: int, fresh_BHFD: Tensor) -> Tensor:
        """All positions of one of the stored tensors, with the fresh ones put in their places."""


class StaticMemory(Memory):
    """Room for all positions from the start."""

    def __init__(self, rows: int, room: int) -> None:
        super().__init__(rows, room)
        self._stored: list[Tensor] = []

    def stay(self, rows: Sequence[int]) -> None:
        super().stay(rows)
        self._stored = [stored[list(rows)] for stored in self._stored]

    def _reserve(self, lengths: Sequence[int]) -> None:
        assert max(lengths) <= self.room, "more positions than there is room for"

    def _kept(self, number: int, fresh_BHFD: Tensor) -> Tensor:
        b, h, f, d = fresh_BHFD.shape
        if number == len(self._stored):
            self._stored.append(fresh_BHFD.new_zeros(b, h, self.room, d))
        stored_BHSD = self._stored[number]
        if self._even:
            stored_BHSD[:, :, self._span - f : self._span] = fresh_BHFD
        else:
            rows_B1 = torch.arange(b, device=fresh_BHFD.device)[:, None]
            stored_BHSD[rows_B1, :, self._places] = fresh_BHFD.transpose(1, 2)
        return stored_BHSD[:, :, : self._span]


class PagedMemory(Memory):
    """Pages of all rows in one pool, which grows when none is free."""

    def __init__(self, rows: int, room: int) -> None:
        super().__init__(rows, room)
        self._stored: list[Tensor] = []
        self._pages: list[list[int]] = [[] for _ in range(rows)]
        self._free: list[int] = []
        self._table = torch.zeros(0)
        self.pool = 0
        """Pages in the pool: the most that were needed at a time."""

    @property
    def used(self) -> int:
        """Pages that hold something."""
        return self.pool - len(self._free)

    def open(self, fresh: int, device: torch.device) -> Window:
        window = super().open(fresh, device)
        most = max(len(pages) for pages in self._pages)
        # A row's missing pages are never seen; any page may stand in for them.
        filled = [pages + [0] * (most - len(pages)) for pages in self._pages]
        self._table = torch.tensor(filled, device=device)
        return window

    def keep(self, lengths: Sequence[int]) -> None:
        super().keep(lengths)
        for row, length in enumerate(lengths):
            needed = -(-length // PAGE)
            self._free += self._pages[row][needed:]
            del self._pages[row][needed:]

    def stay(self, rows: Sequence[int]) -> None:
        super().stay(rows)
        for row in set(range(len(self._pages))) - set(rows):
            self._free += self._pages[row]
        self._pages = [self._pages[row] for row in rows]

    def _reserve(self, lengths: Sequence[int]) -> None:
        assert max(lengths) <= self.room, "more positions than there is room for"
        for pages, length in zip(self._pages, lengths, strict=True):
            while len(pages) * PAGE < length:
                if not self._free:
                    self._free.append(self.pool)
                    self.pool += 1
                pages.append(self._free.pop())

    def _kept(self, number: int, fresh_BHFD: Tensor) -> Tensor:
        b, h, _, d = fresh_BHFD.shape
        if number == len(self._stored):
            self._stored.append(fresh_BHFD.new_zeros(0, PAGE, h, d))
        if missing := self.pool - len(self._stored[number]):
            self._stored[number] = F.pad(self._stored[number], (0, 0, 0, 0, 0, 0, 0, missing))
        stored_PGHD = self._stored[number]
        places_BF = self._places.expand(b, -1)
        at_BF = self._table.gather(1, places_BF // PAGE)
        stored_PGHD[at_BF, places_BF % PAGE] = fresh_BHFD.transpose(1, 2)
        return stored_PGHD[self._table].flatten(1, 2)[:, : self._span].transpose(1, 2)


MEMORIES: dict[str, type[Memory]] = {"static": StaticMemory, "paged": PagedMemory}
"""By the names of `sampling.cache`."""
