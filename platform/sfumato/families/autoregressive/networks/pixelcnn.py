"""Gated PixelCNN: the distribution of every pixel given those before it in raster order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.autoregressive.gated import PixelCnnNetwork
from sfumato.families.autoregressive.networks import NetworkConfig, Parts
from sfumato.families.autoregressive.outputs import OUTPUTS, OutputConfig
from sfumato.families.autoregressive.outputs.logistic import LogisticConfig
from sfumato.families.autoregressive.raster import draw_image
from sfumato.families.autoregressive.sampling import SamplingConfig


class PixelCnnConfig(NetworkConfig):
    """Gated PixelCNN (van den Oord et al. 2016): pixels in raster order."""

    kind: Literal["pixelcnn"] = Field("pixelcnn", description="Selects the model of pixels.")
    width: int = Field(64, ge=1, description="Channels of both stacks.")
    layers: int = Field(8, ge=1, description="Gated blocks.")
    kernel: int = Field(3, ge=3, description="Side of the convolutions, odd.")
    head_width: int = Field(64, ge=1, description="Channels of the output layers.")
    output: Annotated[OutputConfig, OUTPUTS] = Field(
        LogisticConfig(), description="Distribution of a pixel given those before it."
    )

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: {self.kernel} is even; use {self.kernel + 1}")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Two blocks of 4 channels."""
        return cls(width=4, layers=2, head_width=4, output=LogisticConfig.tiny())

    def build(self, parts: Parts, data: DataSpec) -> PixelCnn:
        """A model of pixels."""
        return PixelCnn(self, parts, data)

    def problems(self, data: DataSpec, sampling: SamplingConfig) -> list[str]:
        """Of the distribution, and options that it does not have."""
        found = self.output.problems(data)
        if not self.output.takes_temperature and (sampling.temperature != 1 or sampling.top_k):
            found.append(
                "model.sampling: temperature and top_k have no effect on "
                f"network.output.kind={self.output.kind}; leave them out, or use categorical"
            )
        return found


class PixelCnn:
    """Implements `core.family.Family` and `HasLikelihood`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, network: PixelCnnConfig, parts: Parts, data: DataSpec) -> None:
        self._data = data
        self._output = network.output
        self._dims = math.prod(data.shape)
        self._classes = parts.classes
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=lambda: self._build(network), optimizer=parts.optimizer),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
        }
        self.likelihood_of = network.output.likelihood_of
        self.phases: Sequence[Phase] = (Phase(name="likelihood", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]. A conditional model without labels draws classes evenly."""
        options: SamplingConfig = request.options
        network = nets["ema"]
        assert isinstance(network, PixelCnnNetwork)
        device = next(network.parameters()).device
        label_N = request.tensor("label")
        if self._classes and label_N is None:
            label_N = rng.integers(self._classes)
        channels, height, width = self._data.shape
        uniform_NUHW = rng.uniform(channels + 1, height, width).to(device)

        def pixel(parameters: Tensor, row: int, column: int) -> Tensor:
            noise = uniform_NUHW[:, :, row : row + 1, column : column + 1]
            return self._output.draw(parameters, noise, channels, options)

        labels = label_N.to(device) if self._classes and label_N is not None else None
        return draw_image(network, self._data.shape, rng.rows, labels, pixel)

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """Exact, [B]; with fewer than 256 levels that of the image in those levels, per dimension."""
        return self._nats(nets["ema"], batch, rng) / (self._dims * math.log(2))

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Negative log-likelihood in nats per dimension."""
        loss_B = self._nats(nets["network"], batch, rng) / self._dims
        return LossOut(loss_B, {"bits_per_dim": loss_B.detach() / math.log(2)})

    def _nats(self, network: torch.nn.Module, batch: Batch, rng: Rng) -> Tensor:
        image_BCHW, label_B = batch["image"], batch["label"] if self._classes else None
        return self._output.nats(lambda x_BCHW: network(x_BCHW, label_B), image_BCHW, rng)

    def _build(self, config: PixelCnnConfig) -> PixelCnnNetwork:
        channels = self._data.channels
        return PixelCnnNetwork(
            channels,
            config.output.size(channels),
            width=config.width,
            layers=config.layers,
            kernel=config.kernel,
            head_width=config.head_width,
            classes=self._classes,
        )


COMPONENT = PixelCnnConfig
