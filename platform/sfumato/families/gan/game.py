"""The losses of the phases: what discriminator and generator minimise, and the penalties on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.gradients import gradient_norm, mixed
from sfumato.families.gan.layers.following import PowerIterations, RunningStatistics
from sfumato.families.gan.networks import Generated, Judged
from sfumato.families.gan.penalties import Penalty
from sfumato.families.gan.remedies.consolidation import Consolidation
from sfumato.families.gan.remedies.overfitting import Overfitting, figure
from sfumato.families.gan.remedies.path_length import MEAN, PathLength, path_lengths
from sfumato.families.gan.remedies.replay import EARLIER
from sfumato.families.gan.slopes import SlopePenalty

TINY = 1e-6
"""A distance between images below which they count as equal."""


class Game:
    """The losses, given the networks and what follows them."""

    def __init__(
        self,
        config: GanConfig,
        data: DataSpec,
        classes: int,
        running: RunningStatistics | None,
        iterations: PowerIterations | None,
        path_length: PathLength | None,
        consolidation: Consolidation | None,
        overfitting: Overfitting | None,
    ) -> None:
        self._config, self._data, self._classes = config, data, classes
        self._network, self._objective = config.network, config.objective
        self._loss = config.objective.loss
        self._augmentation = config.objective.augmentation
        self._running, self._iterations, self._path_length = running, iterations, path_length
        self._consolidation, self._overfitting = consolidation, overfitting
        self._classifies = bool(classes) and config.network.classifies

    def discriminate(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Tell real images from generated ones, under the penalties that are part of this loss."""
        label_B = self.labels(batch)
        self._carry(nets, progress)
        groups = [self._real(batch, progress), self._fakes(nets, label_B, progress, rng)]
        groups = [self._augmented(group, progress, rng) for group in groups]
        weight = self._objective.gradient_penalty
        if weight:
            groups.append(mixed(groups[0], groups[1], rng))
        slopes = {
            name: (penalty, *_scored_by(penalty, groups, rng))
            for name, penalty in self._objective.joined.items()
        }
        consistency, known = self._objective.consistency, len(groups)
        if consistency is not None:
            groups += consistency.groups(groups[0].detach(), groups[1].detach(), rng)
        judged = self._judged(nets, groups, label_B, progress)
        scores = [each.score_B for each in judged]
        loss_B = self._loss.discriminator(scores[0], scores[1])
        metrics = {"real_score": scores[0].detach(), "fake_score": scores[1].detach()}
        if weight:
            norm_B = gradient_norm(scores[2], groups[2])
            loss_B = loss_B + weight * (norm_B - self._objective.gradient_penalty_centre).square()
            metrics["gradient_norm"] = norm_B.detach()
        for name, (penalty, points, at) in slopes.items():
            square_B = penalty.square([scores[index] for index in at], points)
            loss_B = loss_B + penalty.factor * square_B
            metrics[name] = square_B.detach()
        if consistency is not None:
            change_B = consistency.penalty(scores[:2], scores[known:])
            loss_B = loss_B + change_B
            metrics["consistency"] = change_B.detach()
        if self._classifies:
            loss_B = loss_B + self._objective.class_weight * (_unlikely(judged[0]) + _unlikely(judged[1]))
        sums = {} if self._iterations is None else self._iterations.sums(nets["discriminator"])
        if self._augmentation is not None:
            sums |= self._augmentation.sums(scores[0].detach())
            metrics |= self._augmentation.metrics(progress.state)
        weights_B = self._learnt(batch)
        if self._overfitting is not None and weights_B is not None:
            sums |= self._overfitting.sums(weights_B == 0, scores[0], scores[1])
            metrics["overfitting"] = figure(progress.state).float()
        return LossOut(loss_B, metrics, sums, weights_B)

    def generate(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Generate images that the discriminator takes for real."""
        objective, label_B, generator = self._objective, self.labels(batch), nets["generator"]
        self._carry(nets, progress)
        if self._running is not None:
            self._running.watch(generator)
        z_BD = rng.normal(self._config.latent)
        inputs = self._network.generator_inputs(self._data, self._config.latent, progress, rng)
        details = self._network.penalised > 0 or self._network.measures
        made: Generated = (
            generator(z_BD, label_B, details=True, **inputs)
            if details
            else Generated(generator(z_BD, label_B, **inputs))
        )
        sums = {} if self._running is None else self._running.sums(generator)
        if self._network.measures:
            sums |= self._network.sums(made)
        groups = [self._augmented(made.image_BCHW, progress, rng)]
        if self._loss.paired or objective.feature_matching:
            groups.append(self._augmented(self._real(batch, progress), progress, rng))
        fake, *real = self._judged(nets, groups, label_B, progress)
        loss_B = (
            self._loss.generator_against(real[0].score_B, fake.score_B)
            if self._loss.paired
            else self._loss.generator(fake.score_B)
        )
        if objective.feature_matching:
            gap_F = real[0].features_BF.float().mean(0) - fake.features_BF.float().mean(0)
            loss_B = loss_B + objective.feature_matching * gap_F.square().sum()
        if self._classifies:
            loss_B = loss_B + objective.class_weight * _unlikely(fake)
        if made.penalty is not None:
            loss_B = loss_B + self._network.penalised * made.penalty
        metrics = {"spread": spread(made.image_BCHW, batch["image"])}
        if self._consolidation is not None:
            sums |= self._consolidation.sums(generator, loss_B, progress, rng)
            held = self._consolidation.penalty(generator, nets[EARLIER], progress)
            if held is not None:
                loss_B = loss_B + held
                metrics["consolidation"] = held.detach()
        return LossOut(loss_B, metrics, sums)

    def penalise(self, penalty: Penalty, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """A penalty on the discriminator, times the number of steps that it represents."""
        label_B = self.labels(batch)
        self._carry(nets, progress)
        image_BCHW = self._real(batch, progress)
        if penalty.place != "real":
            fake_BCHW = self._fakes(nets, label_B, progress, rng)
            between = penalty.place == "mixed"
            image_BCHW = mixed(image_BCHW, fake_BCHW, rng).detach() if between else fake_BCHW
        image_BCHW = self._augmented(image_BCHW, progress, rng)
        judge, inputs = nets["discriminator"], self._network.discriminator_inputs(progress)
        if inputs:
            judge = _Bound(judge, inputs)
        penalty_B, score_B = penalty.penalty(judge, image_BCHW, label_B, rng)
        # The last bias has no part in the gradient, but every parameter must be in the loss.
        loss_B = penalty.factor * penalty_B + 0 * score_B
        return LossOut(loss_B, {"penalty": penalty_B.detach()}, weights_B=self._learnt(batch))

    def shorten(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """The path-length penalty on the generator, times the number of steps that it represents."""
        settings, follower = self._objective.path_length, self._path_length
        assert settings is not None, "the phase exists with its settings alone"
        assert follower is not None, "as does what follows the lengths"
        z_BD = rng.normal(self._config.latent)
        inputs = self._network.generator_inputs(self._data, self._config.latent, progress, rng)
        made = nets["generator"](z_BD, self.labels(batch), details=True, **inputs)
        length_B = path_lengths(made, rng)
        penalty_B = (length_B - progress.state[MEAN].to(length_B.dtype)).square()
        # The last bias has no part in the gradient, but every parameter must be in the loss.
        loss_B = settings.factor * penalty_B + 0 * made.image_BCHW.flatten(1).sum(1)
        metrics = {"penalty": penalty_B.detach(), "length": length_B.detach()}
        return LossOut(loss_B, metrics, follower.sums(length_B))

    def labels(self, batch: Batch) -> Tensor:
        """The classes [B] that the networks see; all zero if they see none."""
        if self._classes:
            return batch["label"]
        image = batch["image"]
        return torch.zeros(len(image), dtype=torch.int64, device=image.device)

    def _learnt(self, batch: Batch) -> Tensor | None:
        """1 for rows that the discriminator may learn from, else 0 [B]; None if it may learn from all."""
        if self._overfitting is None:
            return None
        return 1 - self._overfitting.held_out(batch["image"]).float()

    def _real(self, batch: Batch, progress: Progress) -> Tensor:
        return self._network.as_seen(batch["image"], progress)

    @torch.no_grad()
    def _fakes(self, nets: Nets, label_B: Tensor, progress: Progress, rng: Rng) -> Tensor:
        z_BD = rng.normal(self._config.latent)
        inputs = self._network.generator_inputs(self._data, self._config.latent, progress, rng)
        image_BCHW: Tensor = nets["generator"](z_BD, label_B, **inputs)
        return image_BCHW

    def _augmented(self, x_BCHW: Tensor, progress: Progress, rng: Rng) -> Tensor:
        if self._augmentation is None:
            return x_BCHW
        return self._augmentation.augment(x_BCHW, rng, progress.state)

    def _judged(
        self, nets: Nets, groups: Sequence[Tensor], label_B: Tensor, progress: Progress
    ) -> list[Judged]:
        """What the discriminator says of each group, in one call."""
        labels, inputs = [label_B] * len(groups), self._network.discriminator_inputs(progress)
        if self._classifies or self._objective.feature_matching:
            found: list[Judged] = nets["discriminator"](groups, labels, details=True, **inputs)
            return found
        scores = nets["discriminator"](groups, labels, **inputs)
        return [Judged(score_B, score_B[:, None]) for score_B in scores]

    def _carry(self, nets: Nets, progress: Progress) -> None:
        if self._iterations is not None:
            self._iterations.carry(nets["discriminator"], progress.state)


@torch.no_grad()
def spread(fake_BCHW: Tensor, real_BCHW: Tensor) -> Tensor:
    """How far apart generated images are, over how far apart the real ones of the same classes are: the ratio
    of the mean distances between neighbouring rows. It falls towards 0 as a generator collapses."""
    fake, real = (
        (x_BCHW.float() - x_BCHW.float().roll(1, 0)).abs().mean() for x_BCHW in (fake_BCHW, real_BCHW)
    )
    return fake / real.clamp_min(TINY)


class _Bound(torch.nn.Module):
    """A discriminator with its further inputs, as penalties call it."""

    def __init__(self, discriminator: torch.nn.Module, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self._call, self._inputs = discriminator.__call__, inputs

    def forward(self, groups: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        scores: list[Tensor] = self._call(groups, labels, **self._inputs)
        return scores


def _scored_by(penalty: SlopePenalty, groups: list[Tensor], rng: Rng) -> tuple[list[Tensor], Sequence[int]]:
    """The points that a joined penalty needs scored, and their places in `groups`, where they are put."""
    at = {"real": 0, "generated": 1}.get(penalty.place)
    image_BCHW = mixed(groups[0], groups[1], rng) if at is None else groups[at]
    points = penalty.points(image_BCHW.detach(), rng)
    if penalty.estimator == "exact" and at is not None:
        groups[at] = points[0]  # the score that the loss needs anyway
        return points, [at]
    groups += points
    return points, range(len(groups) - len(points), len(groups))


def _unlikely(judged: Judged) -> Tensor:
    assert judged.log_class_B is not None, "without an auxiliary classifier"
    return -judged.log_class_B
