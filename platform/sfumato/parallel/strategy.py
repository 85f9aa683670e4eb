"""The interface between the training loop and the way networks are laid out over ranks.

A strategy owns the networks and their optimizers. It is told which network a phase trains and hands out
a view in which that network is ready for training and all others are frozen and unwrapped: calling a
passive network through its wrapper, or with gradients on, breaks training with two networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.core.family import Nets
from sfumato.core.optimizer import OptimizerConfig


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


class Strategy(ABC):
    """One layout of networks over ranks.

    The gradient that `step` uses is the sum over ranks of what `backward` was given, so a loop that
    divides by the global batch gets the mean over the global batch however its rows are spread.
    """

    name: ClassVar[str]
    second_order: ClassVar[bool]
    """Whether a loss may differentiate through a gradient (R1, WGAN-GP)."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    @abstractmethod
    def add_trainable(self, name: str, module: nn.Module, optimizer: OptimizerConfig) -> None:
        """Take over a freshly built network, the same on every rank."""

    @abstractmethod
    def add_frozen(self, name: str, module: nn.Module) -> None:
        """Take over a network that is never trained."""

    @abstractmethod
    def add_shadow(self, name: str, source: str) -> None:
        """Create a copy of a trainable network that `follow` moves towards it."""

    @abstractmethod
    def view(self, trains: str | None) -> Nets:
        """All networks by name: `trains` wrapped, with gradients; the others raw, frozen, in eval mode."""

    @abstractmethod
    def accumulate(self, trains: str, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one micro-batch; gradients meet across ranks on the last."""

    @abstractmethod
    def backward(self, trains: str, loss: Tensor) -> None:
        """Add the gradient of `loss` (a scalar) to that of the network."""

    @abstractmethod
    def step(self, trains: str, *, lr: float, max_norm: float | None) -> Tensor:
        """Clip, update, and clear the gradient; returns its norm before clipping, a scalar on the device."""

    @abstractmethod
    def follow(self, shadow: str, weight: float) -> None:
        """shadow <- shadow + weight * (source - shadow), buffers copied."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, as tensors by name; what this rank holds of it."""

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned. Raises CheckpointError where names or shapes differ."""

    @abstractmethod
    def weights(self, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        """Full state dicts on CPU, for export; every rank calls it."""

    @abstractmethod
    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all ranks."""
