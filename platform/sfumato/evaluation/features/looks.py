"""What trainings of feature networks share: batches in random order, and the weights of the best look."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

TOLD = 20
"""How often between two looks training says how far it is."""
POWER = 6.94
"""The average reaches back over about a tenth of training (sigma_rel 0.1)."""

N = TypeVar("N", bound=nn.Module)


def picks(rows: int, batch: int) -> Iterator[Tensor]:
    """Rows [batch] without end, each epoch in an order from torch's generator, without its remainder."""
    while True:
        order_N = torch.randperm(rows)
        yield from (order_N[start : start + batch] for start in range(0, rows - batch + 1, batch))


class Looks(Generic[N]):
    """Follows a network in training by its average, and keeps the weights with the highest score."""

    def __init__(self, network: N) -> None:
        self._network = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self._best = copy.deepcopy(network.state_dict())
        self.scores: list[float] = []

    def follow(self, step: int) -> None:
        """After step 1, 2, ...: the power-function average (Karras et al. 2024, eq. 4)."""
        move(self.average, self._network, (1 - 1 / step) ** (POWER + 1))

    def add(self, score: float) -> None:
        """The average's score; the first of equal ones is kept."""
        if score > max(self.scores, default=-1.0):
            self._best = copy.deepcopy(self.average.state_dict())
        self.scores.append(score)

    def flat(self, patience: int) -> bool:
        """Whether the last `patience` looks have not found a better score than all before them."""
        before, last = self.scores[:-patience], self.scores[-patience:]
        return bool(before) and max(last) <= max(before)

    def figures(self, name: str, most: int) -> dict[str, float]:
        """What to show: the last and the best score, of that name, and how long training may last at most."""
        if not self.scores:
            return {"at most": most}
        return {f"held-out {name}": self.scores[-1], "best": max(self.scores), "at most": most}

    def restore(self) -> None:
        """Leave the network with the best weights, in evaluation mode."""
        self._network.load_state_dict(self._best)
        self._network.eval()


def move(average: nn.Module, network: nn.Module, decay: float) -> None:
    """The average of parameters and of running statistics moves towards the network."""
    for mine, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
