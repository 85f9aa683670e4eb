"""Flows in the latents of a frozen autoencoder (STARFlow: Gu et al. 2025, sec. 3).

The flow models z + std eps, a scaled draw of the latents with normal noise, which sampling removes by the
score before the autoencoder decodes. The density is one of latents, so there is no likelihood of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import Frozen, LossOut, Nets, SampleRequest
from sfumato.core.first_stage import FirstStage, OpenStage, latent_of
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.tiles import tiled
from sfumato.families.flow.bijection import fitting
from sfumato.families.flow.config import FlowConfig
from sfumato.families.flow.dequantization.gaussian import GaussianConfig
from sfumato.families.flow.family import FlowBase
from sfumato.families.flow.network import FlowNetwork
from sfumato.layers.latent_scale import ScalesLatents

NAME = "first_stage"
"""Of the frozen network among the family's networks."""


class LatentFlowNetwork(FlowNetwork, ScalesLatents):
    """A flow of latents together with the scale that gives them a standard deviation of one."""


class LatentFlowFamily(FlowBase):
    """Implements `core.family.Family`, `HasLatent` and `InitialisesFromData`."""

    samplers: Sequence[str] = ("ema", NAME)

    def __init__(self, config: FlowConfig, data: DataSpec, stage: OpenStage) -> None:
        channels, height, width = stage.spec.latent
        super().__init__(config, DataSpec(channels, height, width, data.classes, data.extra))
        self._stage = stage
        assert isinstance(config.dequantization, GaussianConfig), "problems() refuses others"
        self._noise_std = config.dequantization.std
        first_stage = Frozen(build=stage.spec.build, weights=stage.stored)
        self.nets = {NAME: first_stage, **self.nets}

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch with a draw of its scaled latents [B, C, h, w] in place of its images."""
        return {**batch, "image": _scaled(nets["ema"]).inward(self._drawn(nets, batch, rng))}

    def initialise(self, nets: Nets, batch: Batch, rng: Rng) -> None:
        """Set the latents' scale, if none is given, and then the actnorms by these rows."""
        network, z_BChw = _scaled(nets["network"]), self._drawn(nets, batch, rng)
        if self._config.latent_scale is None:
            network.measure_latents(z_BChw)
        with fitting(network):
            self._bits_per_dim(network, {**batch, "image": network.inward(z_BChw)}, rng)

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1], decoded from latents of the averaged flow."""
        z_ND = self.latents(nets, request.options, progress, rng)
        return self.decode_latents(nets, z_ND, request, progress)

    def decode_latents(self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress) -> Tensor:
        """The images of such noise, as those of `sample`."""
        x_NChw = _scaled(nets["ema"]).outward(self._decode(nets, z_ND, request))
        return self._first_stage(nets).decode(x_NChw).clamp(-1, 1)

    def _build(self) -> nn.Module:
        config, shape = self._config, self._data.shape
        levels = config.network.build_levels(shape, self._classes)
        network = LatentFlowNetwork(levels, config.dequantization.build(shape), shape, None)
        channels = shape[0] if config.latent_norm == "channel" else 0
        network.scale_latents(1.0 if config.latent_scale is None else config.latent_scale, channels)
        return network

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return LossOut(self._bits_per_dim(nets["network"], self._dropping_labels(batch, rng), rng))

    def _bits_per_dim(self, network: nn.Module, batch: Batch, rng: Rng) -> Tensor:
        """-log2 p of scaled latents with noise, a value of each [B]: a density, which may be negative."""
        z_BChw, shape = batch["image"], self._data.shape
        noisy_BChw = z_BChw + self._noise_std * rng.normal(*shape).to(z_BChw.device)
        log_p_B: Tensor = network(noisy_BChw, None, self._labels(batch))
        return -log_p_B / (math.prod(shape) * math.log(2))

    def _drawn(self, nets: Nets, batch: Batch, rng: Rng) -> Tensor:
        stage = self._first_stage(nets)
        return latent_of(stage, batch).sample(rng.normal(*self._data.shape))

    def _first_stage(self, nets: Nets) -> FirstStage:
        stage = nets[NAME]
        assert isinstance(stage, FirstStage), "a StageSpec builds nothing else"
        return tiled(stage, self._stage)


def _scaled(network: nn.Module) -> LatentFlowNetwork:
    """The network as what it is built as."""
    assert isinstance(network, LatentFlowNetwork), "built by LatentFlowFamily"
    return network
