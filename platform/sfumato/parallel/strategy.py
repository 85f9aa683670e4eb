"""The interface between the training loop and the way networks are laid out over ranks.

A strategy owns the networks and their optimizers. For the network that a phase trains, it returns a view
in which that network is ready for training and all others are frozen and unwrapped: calling a
passive network through its wrapper, or with gradients on, breaks training with two networks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.core.config import Config
from sfumato.core.family import Nets
from sfumato.core.optimizer import OptimizerConfig
from sfumato.parallel.adapters import Base
from sfumato.parallel.capabilities import Feature, Part
from sfumato.parallel.config import ParallelSettings


@dataclass(frozen=True, slots=True)
class Placement:
    """This process's rank, the number of ranks, and the device of its tensors."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, *, gpu: bool = False) -> Placement:
        """From the process group if there is one, else a single process; on its current GPU or the CPU."""
        ready = dist.is_available() and dist.is_initialized()
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
        device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        return cls(rank, world_size, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyOptions:
    """How a strategy lays out and runs networks; apart from rounding, no option changes a result."""

    compile: bool = False
    activation_checkpointing: bool = False
    offload: bool = False
    own: Config | None = None
    """The strategy's own settings, of its class `Settings`; None for their defaults."""


class Strategy(ABC):
    """One layout of networks over ranks.

    The gradient that `step` uses is that of the sum, over ranks, of the losses given to `backward`. A loop
    that divides by the global batch thus gets the mean over the global batch, however its rows are spread.

    Networks are added, then `ready` lays them out; no other method may be called before it.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    """A short description of what each rank holds."""
    features: ClassVar[frozenset[Feature]]
    """The capabilities of the strategy; a recipe that asks for more is refused before anything starts."""
    Settings: ClassVar[type[Config]] = Config
    """The class of its own settings, `parallel.options` in a recipe."""
    even_passes: ClassVar[bool] = False
    """Whether a forward pass needs all ranks, so that all must run the same number of passes."""
    cut: ClassVar[frozenset[Part]] = frozenset()
    """What is cut over ranks; every rank has the rest whole."""
    masters: ClassVar[bool] = False
    """Whether its optimizer has a copy of its own of the parameters that it updates, cut like its state."""

    def __init__(self, placement: Placement, options: StrategyOptions | None = None) -> None:
        self.placement = placement
        self.options = options or StrategyOptions()

    @classmethod
    def settings(cls, parallel: ParallelSettings) -> Config:
        """Its own settings in a recipe. Raises pydantic's ValidationError for invalid ones."""
        return cls.Settings.model_validate(parallel.options)

    @classmethod
    def cut_over(cls, world_size: int, own: Config) -> int:
        """Over how many ranks it cuts, with these settings of its own."""
        return world_size

    @classmethod
    def further(cls, world_size: int) -> tuple[Mapping[str, Any], ...]:
        """Settings of its own, other than the defaults, that may be faster on so many ranks."""
        return ()

    @classmethod
    def gathers(cls, own: Config) -> float:
        """What a forward and backward pass gathers where parameters are cut, in sizes of these in float32."""
        return 2.0

    @classmethod
    def keeps_gathered(cls, own: Config) -> bool:
        """Whether what the forward pass gathers stays until the backward pass."""
        return False

    @classmethod
    def piece(cls, shape: tuple[int, ...], ranks: int) -> int:
        """How many of a tensor's numbers the fullest of so many ranks has."""
        return -(-math.prod(shape) // ranks)

    @classmethod
    def problems(cls, parallel: ParallelSettings) -> list[str]:
        """Why its own settings, each of them valid, do not fit the workers, one line each."""
        return []

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this machine cannot run the strategy and how to fix it, or None."""
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

        `base` is the part of an adapter's network that never changes: it takes no gradient, is in no state,
        and shares its tensors with the averages.
        """

    @abstractmethod
    def add_frozen(self, name: str, module: nn.Module, *, shard: bool = False) -> None:
        """Take over a network that is never trained.

        Every rank keeps it whole, unless `shard` is set and the strategy can gather it on use.
        """

    @abstractmethod
    def add_ema(self, name: str, source: str, *, train_mode: bool = False) -> None:
        """Create an average: a copy of a trainable network that `follow` moves towards it.

        With `train_mode` it is in train mode while the network is.
        """

    @abstractmethod
    def ready(self) -> None:
        """Lay out all networks and build their optimizers."""

    @abstractmethod
    def view(self, trains: str) -> Nets:
        """All networks by name: `trains` wrapped, with gradients; the others raw, frozen, in eval mode,
        except averages that share their source's."""

    @abstractmethod
    def gathered(self, names: Iterable[str]) -> AbstractContextManager[Nets]:
        """The named networks, whole on every rank, frozen and in eval mode, along with all networks that
        every rank keeps whole anyway.

        Each rank may call any of their methods any number of times. Every rank must enter the block.
        """

    @abstractmethod
    def accumulate(
        self, trains: str, *, last: bool, second_order: bool = False
    ) -> AbstractContextManager[None]:
        """Wrap forward and backward of one micro-batch; gradients are reduced over ranks on the last."""

    @abstractmethod
    def backward(self, trains: str, loss: Tensor) -> None:
        """Add the gradient of `loss` (a scalar) to that of the network."""

    @abstractmethod
    def step(self, trains: str, *, lr: float, max_norm: float | None, scale: Tensor | None = None) -> Tensor:
        """Clip, update, and clear the gradient; returns its norm before clipping, a scalar on the device.

        `scale`, the same on every rank, multiplies the gradient before its norm is taken. The learning rate
        of a group of parameters is `lr` times its factor.

        A gradient that is not finite changes nothing: neither weights nor moments nor step count. The norm
        is the same on every rank.
        """

    @abstractmethod
    def follow(self, ema: str, weight: float) -> None:
        """ema <- ema + weight * (source - ema), buffers copied."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, as tensors by name; the part that this rank holds.

        `nets/<net>/<key>` and `optim/<net>/<key>/<moment>`, with the same names and shapes under every
        strategy. A tensor that is sharded over ranks is a DTensor, or only one rank holds it. Raises
        CheckpointError if an optimizer keeps something that the strategy cannot store.
        """

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned, on any number of ranks and under any strategy.

        `state` has all tensors whole. They are read one at a time; from a stored state
        (`state_dict.InRows`), only the rows that this rank holds. Raises CheckpointError if names
        or shapes differ.
        """

    @abstractmethod
    def weights(self, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        """Full state dicts on CPU, for export; every rank calls it, and rank 0 gets them.

        For an adapter whose base is stored elsewhere, they hold only the adapter.
        """

    @abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all ranks."""

    @abstractmethod
    def sum_in_order(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all ranks, added up in rank order: every rank gets the same bits."""
