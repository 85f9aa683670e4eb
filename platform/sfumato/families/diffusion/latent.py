"""Latent diffusion: the same models on the latents of a frozen autoencoder (Rombach et al. 2022, sec. 3.2).

Latents are brought to a standard deviation of one, which is the scale that the noise schedules expect
(`layers.latent_scale`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import Frozen, Nets
from sfumato.core.first_stage import FirstStage, OpenStage, latent_of
from sfumato.core.rng import Rng
from sfumato.core.tiles import tiled
from sfumato.layers.latent_scale import ScalesLatents

NAME = "first_stage"
"""Of the frozen network among the family's networks."""


class LatentNetwork(ScalesLatents):
    """A network of latents together with their scale; with `channels`, one for each of so many.

    A latent stands for `shrink` pixels along a side.
    """

    def __init__(self, network: nn.Module, scale: float, channels: int = 0, shrink: int = 1) -> None:
        super().__init__()
        self.network, self.shrink = network, shrink
        self.scale_latents(scale, channels)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own."""
        return self.network(*args, **kwargs)


class LatentSpace:
    """Between images and the scaled latents that the model works on.

    `stage` is the autoencoder; `scale` is the factor, or None to measure it on the first batch;
    `by_channel` measures a factor and a shift for each channel.
    """

    def __init__(
        self, stage: OpenStage, scale: float | None, data: DataSpec, *, by_channel: bool = False
    ) -> None:
        self._stage = stage
        self._scale = scale
        self._latent = stage.spec.latent
        self._channels = stage.spec.latent[0] if by_channel else 0
        self._shrink = data.height // stage.spec.latent[1]
        self.data = latent_spec(stage, data)

    def frozen(self) -> Frozen:
        """The autoencoder, with its stored weights."""
        return Frozen(build=self._stage.spec.build, weights=self._stage.stored)

    def wrap(self, network: nn.Module) -> LatentNetwork:
        """The network with the scale; 1 if it is yet to be measured."""
        scale = 1.0 if self._scale is None else self._scale
        return LatentNetwork(network, scale, self._channels, self._shrink)

    def measure(self, nets: Nets, batch: Batch, rng: Rng) -> None:
        """Set the scale of the network that is to be trained from the first images, if none was given."""
        if self._scale is not None:
            return
        scaled(nets["network"]).measure_latents(self._encode(nets, batch, rng))

    def encode(self, nets: Nets, batch: Batch, rng: Rng) -> Batch:
        """The batch with a draw of the scaled latents [B, C, h, w] in place of its images."""
        return {**batch, "image": scaled(nets["ema"]).inward(self._encode(nets, batch, rng))}

    def mean(self, nets: Nets, batch: Batch) -> Tensor:
        """The scaled means of the latents, [B, C, h, w], from which nothing is drawn."""
        return scaled(nets["ema"]).inward(latent_of(self._first_stage(nets), batch).mean)

    def decode(self, nets: Nets, x_NChw: Tensor) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]."""
        return self._first_stage(nets).decode(scaled(nets["ema"]).outward(x_NChw))

    def _encode(self, nets: Nets, batch: Batch, rng: Rng) -> Tensor:
        return latent_of(self._first_stage(nets), batch).sample(rng.normal(*self._latent))

    def _first_stage(self, nets: Nets) -> FirstStage:
        stage = nets[NAME]
        assert isinstance(stage, FirstStage), "a StageSpec builds nothing else"
        return tiled(stage, self._stage)


def latent_spec(stage: OpenStage, data: DataSpec) -> DataSpec:
    """The model's view of the data: latents instead of images, with the data's classes."""
    channels, height, width = stage.spec.latent
    return DataSpec(channels, height, width, data.classes, data.extra)


def scaled(network: nn.Module) -> LatentNetwork:
    """The network as what it is built as."""
    assert isinstance(network, LatentNetwork), "built by LatentSpace.wrap"
    return network
