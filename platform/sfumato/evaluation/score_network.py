"""The small convolutional network of the classification score, and how it is trained.

Its figures depend on both, so that neither changes with the network of the `classifier` features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.rng import seeded
from sfumato.evaluation.features.pixels import scale, shift

LOWEST_SIDE = 4
POOLED_SIDE = 2


class ScoreNetwork(nn.Module):
    """Convolutions with group normalisation, halved until the shorter side is 4, then two linear layers.

    `forward` takes images [B, C, H, W] float32 in [-1, 1] and gives the features [B, dim] (the output of
    the first linear layer) and the logits [B, classes].
    """

    def __init__(self, channels: int, height: int, width: int, classes: int, *, base: int, dim: int) -> None:
        super().__init__()
        halvings = max(1, math.ceil(math.log2(min(height, width) / LOWEST_SIDE)))
        blocks: list[nn.Module] = []
        inner, outer = channels, base
        for _ in range(halvings):
            blocks += [*_convolution(inner, outer), *_convolution(outer, outer), nn.AvgPool2d(2)]
            inner, outer = outer, min(2 * outer, 4 * base)
        blocks += [*_convolution(inner, outer), nn.AdaptiveAvgPool2d(POOLED_SIDE), nn.Flatten()]
        self.body = nn.Sequential(*blocks)
        self.embed = nn.Linear(outer * POOLED_SIDE**2, dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD = self.embed(self.body(x_BCHW))
        return features_BD, self.head(F.silu(features_BD))


def _convolution(inner: int, outer: int) -> list[nn.Module]:
    return [nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.GroupNorm(8, outer), nn.SiLU()]


def train(
    network: ScoreNetwork,
    images_NCHW: Tensor,
    labels_N: Tensor,
    *,
    seen: int,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    """AdamW with a cosine-decayed rate over `seen` images, cross-entropy, random shifts.

    `images_NCHW` uint8. Deterministic in its arguments on one thread: order and shifts come from `seed`.
    """
    rows = len(images_NCHW)
    batch = min(batch, rows)
    steps = max(1, seen // batch)
    limit = max(1, min(images_NCHW.shape[2:]) // 8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps + 1)
    network.train()
    with seeded(seed, "classifier-batches"):
        order_N = torch.randperm(rows)
        position = 0
        for _ in range(steps):
            if position + batch > rows:
                order_N, position = torch.randperm(rows), 0
            pick_B = order_N[position : position + batch]
            position += batch
            _, logits_BK = network(shift(scale(images_NCHW[pick_B]), limit))
            loss = F.cross_entropy(logits_BK, labels_N[pick_B])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()
