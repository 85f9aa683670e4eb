"""The common part of strategies that shard parameters: plain copies of networks, assembled on demand."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sfumato.core.family import Nets
from sfumato.core.optimizer import OptimizerConfig
from sfumato.parallel.adapters import Base
from sfumato.parallel.capabilities import Part
from sfumato.parallel.strategies.ddp import Ddp
from sfumato.parallel.strategy import Placement, StrategyOptions


class Sharded(Ddp):
    """Keeps an empty plain copy of every network that it shards: its structure without memory."""

    even_passes = True
    cut = frozenset(Part)

    def __init__(self, placement: Placement, options: StrategyOptions | None = None) -> None:
        super().__init__(placement, options)
        self._plain: dict[str, nn.Module] = {}

    def add_trainable(
        self,
        name: str,
        module: nn.Module,
        optimizer: OptimizerConfig,
        blocks: Sequence[str] = (),
        base: Base | None = None,
    ) -> None:
        super().add_trainable(name, module, optimizer, blocks, base)
        self._plain[name] = empty(module)

    def add_ema(self, name: str, source: str, *, train_mode: bool = False) -> None:
        super().add_ema(name, source, train_mode=train_mode)
        self._plain[name] = empty(self._raw[name])

    @contextmanager
    def gathered(self, names: Iterable[str]) -> Iterator[Nets]:
        self._activate(None)
        nets = {name: module for name, module in self._raw.items() if name not in self._plain}
        for name in names:
            if name in self._plain:
                nets[name] = self._assembled(name)
        yield nets

    def weights(self, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        states: dict[str, dict[str, Tensor]] = {}
        for name in names:
            for key, tensor in self._tensors(name, self._exports):
                if self.placement.rank == 0:
                    states.setdefault(name, {})[key] = tensor.detach().to("cpu", copy=True)
        return states

    def _layout(self) -> dict[str, Tensor]:
        return {
            f"nets/{name}/{key}": tensor
            for name, module in self._plain.items()
            if name not in self._frozen
            for key, tensor in module.state_dict().items()
            if self._changes(name, key)
        }

    @abstractmethod
    def _tensors(
        self, name: str, wanted: Callable[[str, str], bool] = lambda name, key: True
    ) -> Iterator[tuple[str, Tensor]]:
        """The network's state dict, or the tensors for which `wanted` is true, one whole tensor at a time.
        Every rank must iterate over all of it."""

    @torch.no_grad()
    def _assembled(self, name: str) -> nn.Module:
        module = copy.deepcopy(self._plain[name]).to_empty(device=self.placement.device)
        targets = module.state_dict()
        for key, tensor in self._tensors(name):
            targets[key].copy_(tensor)
        # No strategy changes what a state dict leaves out (tables that follow from the configuration).
        theirs = dict(self._raw[name].named_buffers())
        for key, buffer in module.named_buffers():
            if key not in targets:
                buffer.copy_(theirs[key])
        return module.eval().requires_grad_(False)


def empty(module: nn.Module) -> nn.Module:
    """The module's structure without memory."""
    return copy.deepcopy(module).to("meta")
