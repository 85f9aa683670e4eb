"""Trains the pair of encoders until captions no longer find held-out images better.

AdamW at a constant rate after a warm-up, on randomly shifted images. What is judged and kept are weights
averaged over the last part of training, as those of the classifier are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.rng import seeded
from sfumato.evaluation.features.contrastive_network import Pair
from sfumato.evaluation.features.looks import TOLD, Looks, picks
from sfumato.evaluation.features.pixels import scale, shift
from sfumato.evaluation.progress import ProgressCallback
from sfumato.evaluation.retrieval_ranks import ranks

POOL = 100
"""Images among which a caption is to find its own."""
LEAST_BETWEEN, MOST_BETWEEN = 5_000, 20_000
"""Bounds on the images between two looks; in between, one epoch."""
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train and how: at most `seen` pairs, until the score has not risen `patience` times."""

    seen: int
    patience: int
    batch: int
    lr: float
    seed: int


@dataclass(frozen=True, slots=True)
class Trained:
    """What training came to: the pairs seen, and the score at every look."""

    seen: int
    scores: tuple[float, ...]


def train(
    pair: Pair,
    learnt: tuple[Tensor, Tensor],
    looked_at: tuple[Tensor, Tensor],
    schedule: Schedule,
    progress: ProgressCallback,
) -> Trained:
    """Trains on the pairs `learnt` and leaves the weights that were best on `looked_at`.

    Both are images uint8 [N, C, H, W] and tokens int64 [N, T]. Deterministic in its arguments where torch has
    one thread. `progress` counts pairs seen, of as many as it takes until the score stops rising.
    """
    images_NCHW, ids_NT = learnt
    batch = min(schedule.batch, len(images_NCHW))
    limit = max(1, min(images_NCHW.shape[2:]) // 16)
    steps = max(1, schedule.seen // batch)
    look = max(1, min(MOST_BETWEEN, max(LEAST_BETWEEN, len(images_NCHW))) // batch)
    optimizer = torch.optim.AdamW(pair.parameters(), lr=schedule.lr, weight_decay=0.05)
    looks = Looks(pair)
    pair.train()
    with seeded(schedule.seed, "contrastive-batches"):
        for step, pick_B in zip(range(1, steps + 1), picks(len(images_NCHW), batch), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr * min(1.0, step / look)
            optimizer.zero_grad()
            loss = pair.loss(shift(scale(images_NCHW[pick_B]), limit), ids_NT[pick_B])
            torch.autograd.backward(loss)
            optimizer.step()
            looks.follow(step)
            if step % look and step < steps:
                if step % max(1, look // TOLD) == 0:
                    progress(step * batch, None, looks.figures("retrieval", steps * batch))
                continue
            looks.add(recall(looks.average, *looked_at))
            progress(step * batch, None, looks.figures("retrieval", steps * batch))
            if looks.flat(schedule.patience):
                break
    looks.restore()
    return Trained(step * batch, tuple(looks.scores))


def recall(pair: Pair, images_NCHW: Tensor, ids_NT: Tensor) -> float:
    """Share of the captions whose own image fits them best among `POOL`."""
    pair.eval()
    with torch.inference_mode():
        image_ND = torch.cat([pair.image(scale(part)) for part in torch.split(images_NCHW, _AT_ONCE)])
        text_ND = torch.cat([pair.text(part) for part in torch.split(ids_NT, _AT_ONCE)])
    return float((ranks(image_ND.numpy(), text_ND.numpy(), POOL) == 0).mean())
