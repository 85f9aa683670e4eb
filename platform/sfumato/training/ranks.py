"""Communication between the ranks of a run other than of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. Every rank makes the same calls in the same order."""

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    """None: the default group."""

    @classmethod
    def current(cls, *, apart: bool = False) -> Ranks:
        """From the process group if there is one, else a single process.

        `apart` creates a separate group, so that calls from two threads do not mix.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo") if apart else None)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return self.gather(value)[0]


ALONE = Ranks()
"""A process that trains alone."""
