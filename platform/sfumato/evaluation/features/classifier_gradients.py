"""Gradients of the classifier's loss, in equal parts of the batch side by side.

Torch's own threads meet after every operation, which costs more than small operations gain, and stalls where
other processes share the cores. Here each part of a batch passes through a copy of the network on a thread of
its own, and they meet once a step. The sum is in the order of the parts: the bits do not depend on how many
cores there are.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.evaluation.features.classifier_network import Classifier


class Gradients:
    """Fills the network's gradients; batch normalisation takes the statistics of each part by itself, and the
    network keeps the running averages of the first."""

    def __init__(self, network: Classifier, parts: int) -> None:
        self._networks = [network, *(copy.deepcopy(network) for _ in range(parts - 1))]
        self._pool = ThreadPoolExecutor(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def fill(self, x_BCHW: Tensor, label_B: Tensor) -> None:
        """Of the mean cross-entropy of the batch. Part p takes the rows p, p + parts, ..."""
        first, *others = self._networks
        with torch.no_grad():
            for other in others:
                torch._foreach_copy_(list(other.parameters()), list(first.parameters()))
        parts = len(self._networks)
        jobs = [
            self._pool.submit(_part, network, x_BCHW[part::parts], label_B[part::parts], len(label_B))
            for part, network in enumerate(self._networks)
        ]
        for job in jobs:
            job.result()
        for other in others:
            for mine, theirs in zip(first.parameters(), other.parameters(), strict=True):
                assert mine.grad is not None
                assert theirs.grad is not None
                mine.grad += theirs.grad


def _part(network: Classifier, x_BCHW: Tensor, label_B: Tensor, rows: int) -> None:
    with torch.enable_grad():
        _, logits_BK = network(x_BCHW)
        loss = F.cross_entropy(logits_BK, label_B, reduction="sum") / rows
        network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
