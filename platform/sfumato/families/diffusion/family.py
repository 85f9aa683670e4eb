"""The diffusion family: one network, its averages, one phase; the objective defines what it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.first_stage import OpenStage
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.labels import Guided, LabelDropout
from sfumato.families.diffusion.latent import NAME, LatentSpace
from sfumato.families.diffusion.objectives import BoundedObjective


class DiffusionFamily:
    """A model of pixels. Implements `core.family.Family` and `ExportsDiffusers`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: DiffusionConfig, data: DataSpec) -> None:
        self._config = config
        self._data = data
        self._conditional = bool(config.conditions(data))
        self._objective = config.objective.build(latents=config.first_stage is not None)
        self._labels = LabelDropout(
            data.num_classes if self._conditional else None, config.label_dropout(data)
        )
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=self._build, optimizer=config.optimizer),
            **self._objective.teachers(),
            "ema": EmaOf(source="network", decay=config.ema.decay),
        }
        self.phases: Sequence[Phase] = (Phase(name=self._objective.phase, trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged: this model works on pixels."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1], from noise of `rng`, by the averaged network.

        A conditional model without labels draws from its null class, that is, from all classes; one that was
        trained without it raises ConfigError.
        """
        return self._sample(nets["ema"], request, rng, clip=self._clip(request.options)).clamp(-1, 1)

    def export_diffusers(self, nets: Nets, folder: str, options: Any) -> None:
        """Write a folder that `DiffusionPipeline.from_pretrained` loads; `export.py` has the exact line.

        Raises ConfigError for members of the family that diffusers has no pipeline for.
        """
        from sfumato.families.diffusion.export import write_pipeline  # loads diffusers' pipelines

        objective, network = self._config.objective, self._config.network
        latent = self._config.first_stage is not None
        able = network.for_diffusers and not latent
        scheduler = self._objective.diffusers_scheduler(options, clip=self._clip(options)) if able else None
        if scheduler is None:
            raise ConfigError(
                f"diffusers has no pipeline for objective {objective.kind!r} with network {network.kind!r} "
                f"on {'latents' if latent else 'pixels'}, only for 'ddpm' with 'unet' on pixels; "
                "use --format safetensors"
            )
        write_pipeline(
            Path(folder),
            nets["ema"],
            scheduler,
            options,
            conditional=self._conditional,
        )

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return self._objective.loss(nets, batch, self._labels, progress, rng)

    def _build(self) -> nn.Module:
        return self._config.network.build(self._data, conditional=self._conditional)

    def _sample(self, network: nn.Module, request: SampleRequest, rng: SampleRng, *, clip: bool) -> Tensor:
        """Samples from noise in the space that the network works on, [N, C, H, W]."""
        device = next(network.parameters()).device
        guided = self._guided(network, request, rng.rows, device)
        noise_NCHW = rng.normal(*self._data.shape).to(device)
        return self._objective.sample(guided, noise_NCHW, request.options, rng, clip=clip)

    def _guided(self, network: nn.Module, request: SampleRequest, rows: int, device: torch.device) -> Guided:
        null_class = self._data.num_classes
        if not self._conditional:
            return Guided(network, None, 1.0, null_class)
        label_N = request.tensor("label")
        if label_N is None:
            if not self._labels.probability:
                raise ConfigError(
                    f"labels: required; this {self._config.objective.kind} model was trained without "
                    "dropping labels, so it knows no null class"
                )
            return Guided(network, torch.full((rows,), null_class, device=device), 1.0, null_class)
        weight = getattr(request.options, "guidance", 1.0)
        return Guided(network, label_N.to(device), weight, null_class)

    def _clip(self, options: Any) -> bool:
        return True if options.clip is None else bool(options.clip)


class BoundedDiffusionFamily(DiffusionFamily):
    """A model of pixels with a variational bound; implements `core.family.HasLikelihood`."""

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """Bound on the bits per dimension of 8-bit images, given their labels if there are any, [B]."""
        steps, objective = self._config.sampling.bound_steps, self._objective
        assert isinstance(objective, BoundedObjective), "its sampling has steps of a bound"
        assert steps is not None, "build chooses this class where it is set"
        label_B = batch["label"] if self._conditional else None
        network = Guided(nets["ema"], label_B, 1.0, self._data.num_classes)
        return objective.bits_per_dim(network, batch["image"], steps, rng)


class LatentDiffusionFamily(DiffusionFamily):
    """The same on the latents of a first stage, `data` of which are the images that it encodes."""

    samplers: Sequence[str] = ("ema", NAME)

    def __init__(self, config: DiffusionConfig, data: DataSpec, stage: OpenStage) -> None:
        self._space = LatentSpace(stage, config.latent_scale, data)
        super().__init__(config, self._space.data)
        self.nets = {NAME: self._space.frozen(), **self.nets}

    def initialise(self, nets: Nets, batch: Batch, rng: Rng) -> None:
        """Measure the scale of the latents; implements `core.family.InitialisesFromData`."""
        self._space.measure(nets, batch, rng)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch with its images replaced by a draw of their scaled latents."""
        return self._space.encode(nets, batch, rng)

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]: latents as of a model of pixels, decoded."""
        x_NChw = self._sample(nets["ema"], request, rng, clip=False)
        return self._space.decode(nets, x_NChw).clamp(-1, 1)

    def _build(self) -> nn.Module:
        return self._space.wrap(super()._build())
