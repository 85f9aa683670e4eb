"""The diffusion family: one network, its average, one phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.diffusion.config import DiffusionConfig, SamplingConfig
from sfumato.families.diffusion.export import write_pipeline
from sfumato.families.diffusion.network import build_unet
from sfumato.families.diffusion.objective import denoising_loss
from sfumato.families.diffusion.pipeline import denoise
from sfumato.families.diffusion.sampling import build_scheduler
from sfumato.families.diffusion.schedule import NoiseSchedule


class DiffusionFamily:
    """Implements `core.family.Family` and `ExportsDiffusers`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: DiffusionConfig, data: DataSpec) -> None:
        self._config = config
        self._data = data
        self._conditional = config.conditional(data)
        self._schedule = NoiseSchedule(config.objective.schedule, config.objective.timesteps)
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(
                build=lambda: build_unet(config.network, data, conditional=self._conditional),
                optimizer=config.optimizer,
            ),
            "ema": EmaOf(source="network", decay=config.ema.decay),
        }
        self.phases: Sequence[Phase] = (Phase(name="denoise", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, rng: Rng) -> Batch:
        """The batch as it is: this model works on pixels."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1], from noise of `rng`, by the averaged network.

        A conditional model without labels draws from its null class, that is, from all classes.
        """
        options: SamplingConfig = request.options
        network = nets["ema"]
        device = next(network.parameters()).device
        labels_N = request.labels_N
        guidance = options.guidance
        if self._conditional and labels_N is None:
            labels_N, guidance = torch.full((rng.rows,), self._data.num_classes), 1.0
        x_NCHW = denoise(
            network,
            build_scheduler(self._config.objective, options),
            rng.normal(*self._data.shape).to(device),
            steps=options.steps,
            generators=rng.generators,
            eta=options.eta,
            labels=None if labels_N is None or not self._conditional else labels_N.to(device),
            guidance=guidance,
            null_class=self._data.num_classes,
        )
        return x_NCHW.clamp(-1, 1)

    def export_diffusers(self, nets: Nets, folder: str, options: Any) -> None:
        """Write a folder that `DiffusionPipeline.from_pretrained` loads; `export.py` has the exact line."""
        write_pipeline(
            Path(folder),
            nets["ema"],
            build_scheduler(self._config.objective, options),
            options,
            conditional=self._conditional,
        )

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return denoising_loss(
            nets["network"],
            batch,
            rng,
            schedule=self._schedule,
            prediction=self._config.objective.prediction,
            null_class=self._data.num_classes if self._conditional else None,
            label_dropout=self._config.label_dropout(self._data),
        )
