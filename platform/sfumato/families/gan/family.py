"""The gan family: a generator, its average and a discriminator; their phases, state and sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng, seeded
from sfumato.core.state import State
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.game import Game
from sfumato.families.gan.layers.following import PowerIterations, RunningStatistics
from sfumato.families.gan.remedies.consolidation import Consolidation
from sfumato.families.gan.remedies.overfitting import Overfitting, figure
from sfumato.families.gan.remedies.path_length import PathLength
from sfumato.families.gan.remedies.replay import EARLIER, replayed
from sfumato.families.gan.sampling import SamplingConfig, Statistics, latents


class GanFamily:
    """Implements `core.family.Family`, `HasLatent`, `HasStyles`, `HasPlacement`, `KnowsOverfitting` and
    `core.state.HasState`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: GanConfig, data: DataSpec) -> None:
        self._config = config
        self._data = data
        self._classes = data.num_classes if config.conditions(data) else 0
        self._statistics = Statistics(config.latent, self._classes)
        self._running = RunningStatistics() if config.batch_statistics == "running" else None
        self._augmentation = config.objective.augmentation
        self._iterations = PowerIterations() if config.spectral_norm == "power_iteration" else None
        path_length = config.objective.path_length
        self._path_length = PathLength(path_length) if path_length is not None else None
        held = config.objective.consolidation
        self._consolidation = Consolidation(held) if held is not None else None
        apart = config.objective.held_out
        self._overfitting = Overfitting(apart) if apart is not None else None
        followers = (
            self._running,
            self._iterations,
            self._path_length,
            self._consolidation,
            self._overfitting,
        )
        self._game = Game(config, data, self._classes, *followers)
        self.nets: Mapping[str, NetSpec] = {
            "generator": Trainable(
                build=self._build_generator,
                optimizer=config.objective.corrected_generator(config.generator_optimizer),
            ),
            "discriminator": Trainable(
                build=self._build_discriminator,
                optimizer=config.objective.corrected(config.discriminator_optimizer),
            ),
            "ema": EmaOf(source="generator", decay=config.ema.decay),
        }
        keeps = config.objective.replay or held
        if keeps is not None:
            self.nets = {**self.nets, EARLIER: EmaOf(source="generator", decay=keeps.decay)}
        self.phases: Sequence[Phase] = self._make_phases()
        self.state: State = self._first_state()

    def _build_generator(self) -> nn.Module:
        return self._config.network.build_generator(
            self._data, latent=self._config.latent, classes=self._classes
        )

    def _build_discriminator(self) -> nn.Module:
        built = self._config.network.build_discriminator(
            self._data, classes=self._classes, bias=self._config.objective.loss.sees_bias
        )
        if self._iterations is not None:
            self._iterations.follow(built)
        return built

    def _first_state(self) -> State:
        """Derived from the layers of networks that are built only for this."""
        found = self._config.network.first_state()
        with seeded("first state"):
            if self._running is not None:
                found |= self._running.first(self._build_generator())
            if self._iterations is not None:
                found |= self._iterations.first(self._build_discriminator())
            if self._consolidation is not None:
                found |= self._consolidation.first(self._build_generator())
        if self._path_length is not None:
            found |= self._path_length.first()
        for each in (self._augmentation, self._overfitting):
            if each is not None:
                found |= each.first()
        return found

    def advance(self, state: State, sums: State, progress: Progress) -> State:
        """Running averages, carried vectors, the strength of augmentation, Fisher information."""
        found = self._config.network.advance(state, sums, progress)
        for each in (self._running, self._iterations, self._path_length):
            if each is not None:
                found |= each.advance(state, sums)
        for changing in (self._augmentation, self._consolidation, self._overfitting):
            if changing is not None:
                found |= changing.advance(state, sums, progress)
        return found

    def _make_phases(self) -> list[Phase]:
        """No gradient is clipped: a lazy penalty stands for `every` steps, and must stay as large."""
        objective, game = self._config.objective, self._game
        joined = objective.joined.values()
        phases = [
            Phase(
                name="discriminator",
                trains="discriminator",
                loss=game.discriminate,
                repeats=objective.critic_steps,
                second_order=objective.gradient_penalty > 0 or any(each.second_order for each in joined),
                float32=any(each.float32 for each in joined),
                clip_grad_norm=None,
            ),
            Phase(
                name="generator",
                trains="generator",
                loss=game.generate,
                clip_grad_norm=None,
                reads_weights=objective.consolidation is not None,
            ),
        ]
        phases += [
            Phase(
                name=name,
                trains="discriminator",
                loss=partial(game.penalise, penalty),
                every=penalty.every,
                second_order=penalty.second_order,
                float32=penalty.float32,
                clip_grad_norm=None,
            )
            for name, penalty in objective.lazy.items()
        ]
        if objective.path_length is not None:
            phases.append(
                Phase(
                    name="path_length",
                    trains="generator",
                    loss=game.shorten,
                    every=objective.path_length.every,
                    second_order=True,
                    clip_grad_norm=None,
                )
            )
        return phases

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch, some of whose rows an earlier self has drawn, where `objective.replay` asks for it."""
        replay, network, latent = self._config.objective.replay, self._config.network, self._config.latent
        if replay is None or replay.stage(progress) is None:
            return batch
        inputs = network.generator_inputs(self._data, latent, progress, rng)
        return replayed(replay, nets[EARLIER], batch, latent, rng, progress, **inputs)

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

    def decode_latents(
        self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress, **shown: Any
    ) -> Tensor:
        """The averaged generator's images [N, C, H, W]; `shown` are further inputs of it."""
        # Where no tanh keeps them inside, training sees what lies outside.
        return self._decoded(nets, z_ND, request, progress, **shown).clamp(-1, 1)

    def overfitting(self, progress: Progress) -> float | None:
        """See `core.family.KnowsOverfitting`: the discriminator's, with `objective.held_out`."""
        return None if self._overfitting is None else float(figure(progress.state))

    @property
    def style_layers(self) -> int:
        """See `core.family.HasStyles`."""
        return self._config.network.style_layers(self._data)

    def decode_mixed(
        self,
        nets: Nets,
        z_ND: Tensor,
        other_ND: Tensor,
        layers: range,
        request: SampleRequest,
        progress: Progress,
    ) -> Tensor:
        """See `core.family.HasStyles`; for networks with `styles`."""
        second = other_ND.to(next(nets["ema"].parameters()).device)
        crossing, until = (
            torch.full((len(z_ND),), at, device=second.device) for at in (layers.start, layers.stop)
        )
        return self.decode_latents(
            nets, z_ND, request, progress, second=second, crossing=crossing, until=until
        )

    @property
    def places(self) -> bool:
        """See `core.family.HasPlacement`."""
        return self._config.network.places

    def decode_placed(
        self, nets: Nets, z_ND: Tensor, placed_N33: Tensor, request: SampleRequest, progress: Progress
    ) -> Tensor:
        """See `core.family.HasPlacement`; for networks that declare `places`."""
        return self._decoded(nets, z_ND, request, progress, placed=placed_N33)

    def _decoded(
        self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress, **shown: Any
    ) -> Tensor:
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
        inputs = self._config.network.sampling_inputs(
            generator, self._config.latent, self._classes, progress, request.options
        )
        x_NCHW: Tensor = generator(z_ND.to(device), label_N.to(device), **inputs, **shown)
        return x_NCHW
