"""The interface between the training loop and the way networks are laid out over ranks.

A strategy owns the networks and their optimizers. It is told which network a phase trains and hands out
a view in which that network is ready for training and all others are frozen and unwrapped: calling a
passive network through its wrapper, or with gradients on, breaks training with two networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.core.config import Config
from sfumato.core.family import Nets
from sfumato.core.optimizer import OptimizerConfig
from sfumato.parallel.adapters import Base
from sfumato.parallel.capabilities import Feature
from sfumato.parallel.config import ParallelSettings


@dataclass(frozen=True, slots=True)
class Placement:
    """Which rank this process is, of how many, and where its tensors live."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, *, gpu: bool = False) -> Placement:
        """Of the process group if there is one, else a single process; on its current GPU or on the CPU."""
        ready = dist.is_available() and dist.is_initialized()
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
        device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        return cls(rank, world_size, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyOptions:
    """How a strategy lays out and runs networks; none of it changes what is computed, but for rounding."""

    compile: bool = False
    activation_checkpointing: bool = False
    offload: bool = False
    own: Config | None = None
    """The strategy's own settings, of its class `Settings`; None for their defaults."""


class Strategy(ABC):
    """One layout of networks over ranks.

    The gradient that `step` uses is the sum over ranks of what `backward` was given, so a loop that
    divides by the global batch gets the mean over the global batch however its rows are spread.

    Networks are added, then `ready` lays them out; nothing else may be called before it.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    """What each rank holds, in a few words."""
    features: ClassVar[frozenset[Feature]]
    """What the strategy can do; a recipe that asks for more is refused before anything starts."""
    Settings: ClassVar[type[Config]] = Config
    """The class of its own settings, `parallel.options` in a recipe."""
    even_passes: ClassVar[bool] = False
    """Whether a forward pass needs all ranks, so that every rank has to run equally many."""

    def __init__(self, placement: Placement, options: StrategyOptions | None = None) -> None:
        self.placement = placement
        self.options = options or StrategyOptions()

    @classmethod
    def settings(cls, parallel: ParallelSettings) -> Config:
        """Its own settings in a recipe. Raises pydantic's ValidationError for what it does not take."""
        return cls.Settings.model_validate(parallel.options)

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this machine cannot run the strategy and how to mend it, or None."""
        return None

    @abstractmethod
    def add_trainable(
        self,
        name: str,
        module: nn.Module,
        optimizer: OptimizerConfig,
        blocks: Sequence[str] = (),
        base: Base | None = None,
    ) -> None:
        """Take over a freshly built network, the same on every rank. `blocks` is `Trainable.blocks`.

        `base`, of an adapter, is what of it never changes: it takes no gradient and is in no state, and its
        averages use the same tensors.
        """

    @abstractmethod
    def add_frozen(self, name: str, module: nn.Module, *, shard: bool = False) -> None:
        """Take over a network that is never trained.

        Every rank keeps it whole, unless `shard` asks for less and the strategy can gather it on use.
        """

    @abstractmethod
    def add_ema(self, name: str, source: str) -> None:
        """Create a copy of a trainable network that `follow` moves towards it."""

    @abstractmethod
    def ready(self) -> None:
        """Lay out all networks and make their optimizers."""

    @abstractmethod
    def view(self, trains: str) -> Nets:
        """All networks by name: `trains` wrapped, with gradients; the others raw, frozen, in eval mode."""

    @abstractmethod
    def gathered(self, names: Iterable[str]) -> AbstractContextManager[Nets]:
        """The named networks whole on every rank, frozen and in eval mode, with all that every rank keeps
        whole anyway.

        Any method of them may be called, by each rank as often as it likes. Every rank enters the block.
        """

    @abstractmethod
    def accumulate(
        self, trains: str, *, last: bool, second_order: bool = False
    ) -> AbstractContextManager[None]:
        """Around forward and backward of one micro-batch; gradients meet across ranks on the last."""

    @abstractmethod
    def backward(self, trains: str, loss: Tensor) -> None:
        """Add the gradient of `loss` (a scalar) to that of the network."""

    @abstractmethod
    def step(self, trains: str, *, lr: float, max_norm: float | None, scale: Tensor | None = None) -> Tensor:
        """Clip, update, and clear the gradient; returns its norm before clipping, a scalar on the device.

        `scale` multiplies the gradient before its norm is taken, the same on every rank. A group of
        parameters learns at `lr` times its factor.

        A gradient that is not finite changes nothing: neither weights nor moments nor step count. The norm
        is the same on every rank.
        """

    @abstractmethod
    def follow(self, ema: str, weight: float) -> None:
        """ema <- ema + weight * (source - ema), buffers copied."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, as tensors by name; what this rank holds of it.

        `nets/<net>/<key>` and `optim/<net>/<key>/<moment>`, of the same names and shapes under every
        strategy. A tensor that is spread over ranks is a DTensor, or is held by one of them alone. Raises
        CheckpointError where an optimizer keeps something that the strategy cannot store.
        """

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned, on any number of ranks and under any strategy.

        `state` has all tensors whole; they are taken from it one at a time, of a stored one
        (`state_dict.InRows`) only the rows that this rank holds. Raises CheckpointError where names
        or shapes differ.
        """

    @abstractmethod
    def weights(self, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        """Full state dicts on CPU, for export; every rank calls it, and rank 0 gets them.

        Of an adapter whose base is stored elsewhere they have the adapter alone.
        """

    @abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all ranks."""

    @abstractmethod
    def sum_in_order(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all ranks, added up in their order: every rank gets the same bits."""
