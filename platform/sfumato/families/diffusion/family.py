"""The diffusion family: one network, its averages, one phase; the objective defines what it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.core.attention import Attended, Control
from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.errors import ConfigError
from sfumato.families.diffusion.alignment import NAME as ENCODER
from sfumato.families.diffusion.attention import attending
from sfumato.families.diffusion.backbone import Backbone
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.drawing import drawing_of
from sfumato.families.diffusion.guidance.guiding import Guiding
from sfumato.families.diffusion.latent import NAME as FIRST_STAGE
from sfumato.families.diffusion.parts import Parts
from sfumato.families.diffusion.preference import REFERENCE, REJECTED, preference_loss
from sfumato.families.diffusion.trajectory.path import DiffusionPath
from sfumato.text.condition import DROPPED


class DiffusionFamily:
    """A model of pixels, or of the latents of a first stage, `data` of which are the images that it encodes.

    Implements `core.family.Family` and `ExportsDiffusers`.
    """

    initialise: Callable[[Nets, Batch, Rng], None]
    """Of a model of latents, their scale; of an adapter, what follows from its base. Others have none."""

    def __init__(self, config: DiffusionConfig, data: DataSpec) -> None:
        self._config = config
        self._parts = parts = Parts.of(config, data)
        self._backbone = Backbone(parts)
        self._given = parts.conditioning()
        self._drawing = drawing_of(config.adapter, parts.text, config.optimizer, config.ema)
        self._guiding = Guiding(parts, 0.0 if self._drawing is None else self._drawing.noise)
        self.nets = self._nets()
        self.samplers: Sequence[str] = (
            "ema",
            *(() if parts.space is None else (FIRST_STAGE,)),
            *(() if parts.text is None else parts.text.frozen),
            *parts.shown_by,
            *self._guiding.nets,
            *(() if self._drawing is None else self._drawing.samplers),
        )
        if config.pretrained is None and parts.space is not None:
            self.initialise = parts.space.measure
        elif config.pretrained is not None and config.adapter is not None and config.adapter.begins:
            self.initialise = self._backbone.begin
        objective = parts.objective
        self.phases: Sequence[Phase] = (
            *objective.further_phases(self._given),
            Phase(name=objective.phase, trains="network", loss=self._loss, float32=objective.float32),
            *(() if self._drawing is None else self._drawing.phases),
        )

    def _nets(self) -> Mapping[str, NetSpec]:
        parts, config = self._parts, self._config
        nets: dict[str, NetSpec] = {}
        if parts.space is not None:
            nets[FIRST_STAGE] = parts.space.frozen()
        if config.preference is not None and config.pretrained is not None:
            nets[REFERENCE] = self._backbone.before_tuning(config.pretrained)
        if parts.text is not None:
            nets |= parts.text.frozen
        if parts.alignment is not None:
            nets[ENCODER] = parts.alignment.frozen
        nets |= parts.shown_by
        nets["network"] = self._backbone.trainable()
        nets |= parts.objective.nets()
        nets["ema"] = EmaOf(source="network", decay=config.ema.decay)
        nets |= self._guiding.nets
        if self._drawing is not None:
            nets |= self._drawing.nets
        return nets

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch with all that the network sees: a draw of scaled latents in place of its images, for a
        model of latents, and the inputs of its texts and of an adapter, if there are any."""
        parts, config = self._parts, self._config
        found = self._drawn(nets, batch, rng)
        if parts.text is not None:
            found = parts.text.prepare(nets, found, rng)
        if parts.alignment is not None:
            found = {**found, **parts.alignment.inputs(nets, batch)}
        if config.preference is not None:
            other = self._drawn(nets, {"image": batch[config.preference.column]}, rng)
            found = {**found, REJECTED: other["image"]}
        if config.adapter is None:
            return found
        look = parts.look(nets, rng, found.get(DROPPED))
        return {**found, **config.adapter.inputs(batch, look)}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1], from noise of `rng`, by the averaged network.

        A conditional model without labels draws from its null class, that is, from all classes; one that was
        trained without it raises ConfigError.
        """
        parts, options = self._parts, request.options
        request = self._completed(nets, request, rng)
        guided = self._guiding.guided(nets, request, rng.rows)
        device = next(nets["ema"].parameters()).device
        noise_NChw = rng.beginning(*parts.data.shape).to(device)
        x_NChw = parts.objective.sample(guided, noise_NChw, options, rng, clip=parts.clips(options))
        return (x_NChw if parts.space is None else parts.space.decode(nets, x_NChw)).clamp(-1, 1)

    def path(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> DiffusionPath:
        """The path that edits enter; implements `core.paths.HasPath`."""
        request = self._completed(nets, request, rng)
        return DiffusionPath(
            self._parts.objective,
            self._guiding.guided(nets, request, rng.rows),
            nets,
            request.options,
            rng,
            self._parts.data.shape,
            clip=self._parts.clips(request.options),
            space=self._parts.space,
        )

    def attention_problems(self, nets: Nets) -> list[str]:
        """Why attention to words cannot be taken over; implements `core.attention.HasAttention`."""
        return attending.attention_problems(self._parts, nets)

    def attended(
        self,
        nets: Nets,
        source: SampleRequest,
        target: SampleRequest,
        progress: Progress,
        rng: SampleRng,
        control: Control,
    ) -> Attended:
        """Samples of two texts, of which the second takes over the attention of the first."""
        one, other = (self._completed(nets, request, rng) for request in (source, target))
        return attending.attended(self._parts, self._guiding, nets, one, other, rng, control)

    def noise_shape(self, options: Any) -> tuple[int, ...]:
        """Of pixels or latents; implements `core.paths.BeginsInNoise`."""
        self._parts.objective.noise_levels(options)
        if problem := options.adds_noise:
            raise ConfigError(problem)
        return self._parts.data.shape

    def export_diffusers(self, nets: Nets, folder: str, options: Any) -> None:
        """Write a folder that diffusers loads: a pipeline (`export.py` has the exact line), or an adapter.

        Raises ConfigError for members of the family that diffusers has no pipeline for.
        """
        from sfumato.families.diffusion.interchange import diffusers_folder

        diffusers_folder.write(self._parts, nets, Path(folder), options)

    def _drawn(self, nets: Nets, batch: Batch, rng: Rng) -> Batch:
        """The batch, with a draw of its latents for a model of them."""
        return batch if self._parts.space is None else self._parts.space.encode(nets, batch, rng)

    def _completed(self, nets: Nets, request: SampleRequest, rng: SampleRng) -> SampleRequest:
        """The request with what a prior or the model below draws, if there is one and nothing was given."""
        return request if self._drawing is None else self._drawing.completed(nets, request, rng)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        alignment, preference = self._parts.alignment, self._config.preference

        def loss(nets: Nets, batch: Batch, rng: Rng) -> LossOut:
            def objective(nets: Nets) -> LossOut:
                return self._parts.objective.loss(nets, batch, self._given, progress, rng)

            return objective(nets) if alignment is None else alignment.loss(nets, batch, objective)

        if preference is None:
            return loss(nets, batch, rng)
        return preference_loss(preference, loss, nets, batch, rng)
