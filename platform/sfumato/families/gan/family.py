"""The gan family: a generator, its average and a discriminator; two or three phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng, seeded
from sfumato.core.state import State
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.following import PowerIterations, RunningStatistics
from sfumato.families.gan.gradients import gradient_norm, mixed
from sfumato.families.gan.penalties import Penalty
from sfumato.families.gan.sampling import SamplingConfig, Statistics, latents


class GanFamily:
    """Implements `core.family.Family`, `HasLatent` and `core.state.HasState`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: GanConfig, data: DataSpec) -> None:
        self._config = config
        self._data = data
        self._classes = data.num_classes if config.conditions(data) else 0
        self._game = config.objective.loss
        self._statistics = Statistics(config.latent, self._classes)
        self._running = RunningStatistics() if config.batch_statistics == "running" else None
        self._iterations = PowerIterations() if config.spectral_norm == "power_iteration" else None
        self.nets: Mapping[str, NetSpec] = {
            "generator": Trainable(
                build=self._build_generator,
                optimizer=config.generator_optimizer,
            ),
            "discriminator": Trainable(
                build=self._build_discriminator,
                optimizer=config.objective.corrected(config.discriminator_optimizer),
            ),
            "ema": EmaOf(source="generator", decay=config.ema.decay),
        }
        self.phases: Sequence[Phase] = self._make_phases()
        self.state: State = self._first_state()

    def _build_generator(self) -> nn.Module:
        return self._config.network.build_generator(
            self._data, latent=self._config.latent, classes=self._classes
        )

    def _build_discriminator(self) -> nn.Module:
        built = self._config.network.build_discriminator(
            self._data, classes=self._classes, bias=self._game.sees_bias
        )
        if self._iterations is not None:
            self._iterations.follow(built)
        return built

    def _first_state(self) -> State:
        """Derived from the layers of networks that are built only for this."""
        found: dict[str, Tensor] = {}
        with seeded("first state"):
            if self._running is not None:
                found |= self._running.first(self._build_generator())
            if self._iterations is not None:
                found |= self._iterations.first(self._build_discriminator())
        return found

    def advance(self, state: State, sums: State, progress: Progress) -> State:
        """Running averages and carried vectors after a step."""
        followed = (self._running, self._iterations)
        return {
            name: value
            for each in followed
            if each is not None
            for name, value in each.advance(state, sums).items()
        }

    def _make_phases(self) -> list[Phase]:
        objective = self._config.objective
        phases = [
            Phase(
                name="discriminator",
                trains="discriminator",
                loss=self._discriminate,
                repeats=objective.critic_steps,
                second_order=objective.gradient_penalty > 0,
                clip_grad_norm=None,
            ),
            Phase(name="generator", trains="generator", loss=self._generate, clip_grad_norm=None),
        ]
        return phases + [
            Phase(
                name=name,
                trains="discriminator",
                loss=partial(self._penalise, penalty),
                every=penalty.every,
                second_order=penalty.second_order,
                float32=penalty.float32,
                clip_grad_norm=None,  # a lazy penalty stands for `every` steps, and must stay as large
            )
            for name, penalty in objective.all_penalties.items()
        ]

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged: this model works on pixels."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1], from latents of `rng`, by the averaged generator.

        A conditional model without labels cycles through all classes.
        """
        return self.decode_latents(
            nets, self.latents(nets, request.options, progress, rng), request, progress
        )

    def latents(self, nets: Nets, options: SamplingConfig, progress: Progress, rng: SampleRng) -> Tensor:
        """z [N, D], truncated where the options say so."""
        return latents(rng, self._config.latent, options.truncation)

    def decode_latents(self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress) -> Tensor:
        """The averaged generator's images [N, C, H, W]."""
        generator, label_N = nets["ema"], request.tensor("label")
        if self._running is not None:
            self._running.stand(generator, progress.state)
        else:
            self._statistics.update(generator, request.options)
        device = next(generator.parameters()).device
        if not self._classes:
            label_N = torch.zeros(len(z_ND), dtype=torch.int64)
        elif label_N is None:
            label_N = torch.arange(len(z_ND)) % self._classes
        x_NCHW: Tensor = generator(z_ND.to(device), label_N.to(device))
        return x_NCHW

    def _discriminate(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Tell real images from generated ones, under the gradient penalty if there is one."""
        real_BCHW, label_B = batch["image"], self._labels(batch)
        self._carry(nets, progress)
        with torch.no_grad():
            fake_BCHW = nets["generator"](rng.normal(self._config.latent), label_B)
        groups = [real_BCHW, fake_BCHW]
        weight = self._config.objective.gradient_penalty
        if weight:
            groups.append(mixed(real_BCHW, fake_BCHW, rng))
        scores = nets["discriminator"](groups, [label_B] * len(groups))
        loss_B = self._game.discriminator(scores[0], scores[1])
        metrics = {"real_score": scores[0].detach(), "fake_score": scores[1].detach()}
        if weight:
            norm_B = gradient_norm(scores[2], groups[2])
            loss_B = loss_B + weight * (norm_B - 1).square()
            metrics["gradient_norm"] = norm_B.detach()
        sums = {} if self._iterations is None else self._iterations.sums(nets["discriminator"])
        return LossOut(loss_B, metrics, sums)

    def _generate(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Generate images that the discriminator takes for real."""
        label_B, generator = self._labels(batch), nets["generator"]
        self._carry(nets, progress)
        if self._running is not None:
            self._running.watch(generator)
        fake_BCHW = generator(rng.normal(self._config.latent), label_B)
        sums = {} if self._running is None else self._running.sums(generator)
        (score_B,) = nets["discriminator"]([fake_BCHW], [label_B])
        return LossOut(self._game.generator(score_B), sums=sums)

    def _penalise(self, penalty: Penalty, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """The penalty, times the number of steps that it represents."""
        label_B = self._labels(batch)
        self._carry(nets, progress)
        penalty_B, score_B = penalty.penalty(nets["discriminator"], batch["image"], label_B, rng)
        # The last bias has no part in the gradient, but every parameter must be in the loss.
        loss_B = penalty.factor * penalty_B + 0 * score_B
        return LossOut(loss_B, {"penalty": penalty_B.detach()})

    def _carry(self, nets: Nets, progress: Progress) -> None:
        if self._iterations is not None:
            self._iterations.carry(nets["discriminator"], progress.state)

    def _labels(self, batch: Batch) -> Tensor:
        """The classes [B] that the networks see; all zero if they see none."""
        if self._classes:
            return batch["label"]
        image = batch["image"]
        return torch.zeros(len(image), dtype=torch.int64, device=image.device)
