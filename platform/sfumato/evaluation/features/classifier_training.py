"""Trains the classifier until the accuracy on images that it does not learn from stops rising.

AdamW at a constant rate after a warm-up, on randomly shifted images and, a quarter as many, damaged ones.
What is judged and kept are weights averaged over the last part of training, whose length grows with training
(Karras et al. 2024, eq. 3, the power function profile): like a decayed rate, they are at their best at any
time, and the end need not be known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.core.rng import seeded
from sfumato.evaluation.features.classifier_gradients import Gradients
from sfumato.evaluation.features.classifier_network import Classifier
from sfumato.evaluation.features.damage import damaged
from sfumato.evaluation.features.looks import TOLD, Looks, picks
from sfumato.evaluation.features.pixels import scale, shift
from sfumato.evaluation.progress import ProgressCallback

REAL_PER_DAMAGED = 4
JUDGED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train and how: images `longest` at most, the accuracy looked at every `every` images;
    training ends when it has not risen `patience` times in a row (0: only at `longest`)."""

    longest: int
    every: int
    patience: int
    batch: int
    lr: float
    seed: int
    replicas: int = 1
    """Parts of a batch that are computed side by side, each on a thread."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What training came to: the images seen, and the accuracy at every look."""

    seen: int
    accuracies: tuple[float, ...]


def train(
    network: Classifier,
    learnt: tuple[Tensor, Tensor],
    looked_at: tuple[Tensor, Tensor],
    schedule: Schedule,
    progress: ProgressCallback,
) -> Trained:
    """Trains `network` on the images `learnt` and leaves it with the weights that were best on `looked_at`.

    Both are images uint8 [N, C, H, W] and labels int64 [N]. Deterministic in its arguments where torch has
    one thread: order, shifts and damage come from the schedule's seed. `progress` counts images seen, and
    shows the accuracy; how many it takes is open.
    """
    images_NCHW, labels_N = learnt
    batch = min(schedule.batch, len(images_NCHW))
    limit = max(1, min(images_NCHW.shape[2:]) // 8)
    steps = max(1, schedule.longest // batch)
    look = max(1, schedule.every // batch)
    warm_up = max(1, min(steps // 10, look))
    optimizer = torch.optim.AdamW(network.parameters(), lr=schedule.lr, weight_decay=0.05)
    looks = Looks(network)
    network.train()
    with seeded(schedule.seed, "classifier-batches"), Gradients(network, schedule.replicas) as gradients:
        for step, pick_B in zip(range(1, steps + 1), picks(len(images_NCHW), batch), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr * min(1.0, step / warm_up)
            x_BCHW = shift(scale(images_NCHW[pick_B]), limit)
            outliers = damaged(x_BCHW[::REAL_PER_DAMAGED])
            label_B = torch.cat([labels_N[pick_B], labels_N.new_full((len(outliers),), network.classes)])
            gradients.fill(torch.cat([x_BCHW, outliers]), label_B)
            optimizer.step()
            looks.follow(step)
            if step % look and step < steps:
                if step % max(1, look // TOLD) == 0:
                    progress(step * batch, None, looks.figures("accuracy", steps * batch))
                continue
            looks.add(accuracy(looks.average, *looked_at))
            progress(step * batch, None, looks.figures("accuracy", steps * batch))
            if schedule.patience and looks.flat(schedule.patience):
                break
    looks.restore()
    return Trained(step * batch, tuple(looks.scores))


def accuracy(network: Classifier, images_NCHW: Tensor, labels_N: Tensor) -> float:
    """Share of the images that the network, in evaluation mode, gives their class."""
    network.eval()
    with torch.inference_mode():
        parts = zip(
            torch.split(images_NCHW, JUDGED_AT_ONCE), torch.split(labels_N, JUDGED_AT_ONCE), strict=True
        )
        hits = sum(
            int((network(scale(x))[1][:, : network.classes].argmax(1) == label).sum()) for x, label in parts
        )
    return hits / len(labels_N)
