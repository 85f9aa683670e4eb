"""The number of forward passes of an update, for strategies whose ranks must all take the same number."""

from __future__ import annotations

from sfumato.data.order.micro_batches import plan
from sfumato.parallel.strategy import Strategy
from sfumato.training.config import TrainSettings


def passes_of(strategy: Strategy, settings: TrainSettings, streams: int) -> int:
    """The most micro-batches of any rank; 0 if each rank may take its own number of passes."""
    if not strategy.even_passes:
        return 0
    world_size = strategy.placement.world_size
    return max(
        len(plan(settings.batch, streams, world_size, rank, settings.micro_batch))
        for rank in range(world_size)
    )
