"""The translation family: translators and discriminators; two phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.state import State
from sfumato.families.translation.config import TranslationConfig


class TranslationFamily:
    """Implements `core.family.Family` and `core.state.HasState`."""

    def __init__(self, config: TranslationConfig, data: DataSpec) -> None:
        objective = self._objective = config.objective
        self._source, self._data = objective.source(data).name, data
        self.state: State = objective.first_state(data)
        nets: dict[str, NetSpec] = {
            "generator": Trainable(
                build=lambda: objective.build_generator(config.generator, data),
                optimizer=config.generator_optimizer,
            ),
            "discriminator": Trainable(
                build=lambda: objective.build_discriminator(config.discriminator, data),
                optimizer=config.discriminator_optimizer,
            ),
        }
        if config.ema is not None:
            nets["ema"] = EmaOf(source="generator", decay=config.ema.decay)
        self.nets: Mapping[str, NetSpec] = nets
        self.samplers: Sequence[str] = ("generator",) if config.ema is None else ("ema",)
        self.phases: Sequence[Phase] = (
            Phase(name="discriminator", trains="discriminator", loss=self._discriminate, clip_grad_norm=None),
            Phase(name="generator", trains="generator", loss=self._generate, clip_grad_norm=None),
        )

    def advance(self, state: State, sums: State, progress: Progress) -> State:
        """The objective's state after a step."""
        return self._objective.advance(state, sums, self._data)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged: translators work on pixels."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """The sources, translated: [N, C, H, W] in [-1, 1]. Nothing is drawn."""
        source = request.tensor(self._source)
        assert source is not None, "it is required"
        generator = nets[self.samplers[0]]
        device = next(generator.parameters()).device
        return self._objective.translated(generator, source.to(device), request.options)

    def _discriminate(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return self._objective.discriminate(nets, batch, progress, rng)

    def _generate(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return self._objective.generate(nets, batch)
