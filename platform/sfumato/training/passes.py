"""How many forward passes an update takes, where all ranks have to take equally many."""

from __future__ import annotations

from sfumato.data.order.micro_batches import plan
from sfumato.parallel.strategy import Strategy
from sfumato.training.config import TrainSettings


def passes_of(strategy: Strategy, settings: TrainSettings, streams: int) -> int:
    """As many as the rank with the most micro-batches has; 0 where each may go by its own."""
    if not strategy.even_passes:
        return 0
    world_size = strategy.placement.world_size
    return max(
        len(plan(settings.batch, streams, world_size, rank, settings.micro_batch))
        for rank in range(world_size)
    )
