"""Replicas that average their gradients: torch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sfumato.errors import CapabilityError
from sfumato.parallel.capabilities import Feature
from sfumato.parallel.strategies.single import Single
from sfumato.parallel.strategy import Placement, StrategyOptions

_PART = 1 << 18
"""Numbers that `sum_in_order` gathers at a time."""


class Ddp(Single):
    """Every network whole on every rank, including the averages (EMA), which need no communication."""

    name = "ddp"
    about = "everything; gradients are averaged"
    features = Single.features | {Feature.MANY_WORKERS}

    def __init__(self, placement: Placement, options: StrategyOptions | None = None) -> None:
        if not dist.is_initialized():
            raise CapabilityError(
                f"parallel.strategy={self.name} needs a process group; use parallel.strategy=single"
            )
        super().__init__(placement, options)

    def accumulate(
        self, trains: str, *, last: bool, second_order: bool = False
    ) -> AbstractContextManager[None]:
        module = self._trained[trains]
        if last or not isinstance(module, DistributedDataParallel):
            return nullcontext()
        return module.no_sync()

    def backward(self, trains: str, loss: Tensor) -> None:
        # DDP divides the summed gradient by the world size; a loss is already divided by the global batch.
        super().backward(trains, loss * self.placement.world_size)

    def weights(self, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        return super().weights(names if self.placement.rank == 0 else ())

    def sum(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    def sum_in_order(self, values: Tensor) -> Tensor:
        # A collective's own sum may differ between ranks in the last bit. One part at a time, since every
        # rank holds the parts of all ranks.
        flat = values.contiguous().view(-1)
        sums = torch.empty_like(flat)
        for part, total in zip(torch.split(flat, _PART), torch.split(sums, _PART), strict=True):
            parts = [torch.empty_like(part) for _ in range(self.placement.world_size)]
            dist.all_gather(parts, part)
            total.copy_(parts[0])
            for other in parts[1:]:
                total.add_(other)
        return sums.view_as(values)

    def _wrap(self, name: str, module: nn.Module) -> nn.Module:
        if self.placement.world_size == 1:
            return module  # nothing to average: the wrapper's buckets and hooks would only cost time
        on_gpu = self.placement.device.type == "cuda"
        return DistributedDataParallel(
            module,
            device_ids=[self.placement.device.index] if on_gpu else None,
            # Every rank builds the same network from the seed and computes the same buffers.
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )


COMPONENT = Ddp
