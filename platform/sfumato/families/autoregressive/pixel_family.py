"""The family of models of pixels: a network that gives each pixel's distribution from those before it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.autoregressive.code_family import prefix_of
from sfumato.families.autoregressive.networks import NetworkConfig, Parts
from sfumato.families.autoregressive.outputs import OUTPUTS, OutputConfig
from sfumato.families.autoregressive.outputs.logistic import LogisticConfig
from sfumato.families.autoregressive.sampling import SamplingConfig

DrawPixel = Callable[[Tensor, int, int], Tensor]
"""From parameters [B, outputs, 1, 1] and the pixel's row and column to its value [B, C, 1, 1] in [-1, 1]."""


class PixelNetworkConfig(NetworkConfig, ABC):
    """A network of pixels: it maps (images [B, C, H, W], classes [B] or None) to parameters [B, P, H, W]."""

    output: Annotated[OutputConfig, OUTPUTS] = Field(
        LogisticConfig(), description="Distribution of a pixel given those before it."
    )

    @abstractmethod
    def network(self, data: DataSpec, classes: int) -> nn.Module:
        """The network, with weights from torch's global generator."""

    def draw_image(
        self,
        network: nn.Module,
        shape: tuple[int, int, int],
        rows: int,
        label_B: Tensor | None,
        draw: DrawPixel,
    ) -> Tensor:
        """Images [rows, C, H, W] in [-1, 1], pixel after pixel in raster order: a whole pass for each."""
        device = next(network.parameters()).device
        x_BCHW = torch.zeros(rows, *shape, device=device)
        for row in range(shape[1]):
            for column in range(shape[2]):
                parameters = network(x_BCHW, label_B)[:, :, row : row + 1, column : column + 1]
                x_BCHW[:, :, row, column] = draw(parameters, row, column)[:, :, 0, 0]
        return x_BCHW

    def build(self, parts: Parts, data: DataSpec) -> PixelFamily:
        """A model of pixels."""
        return PixelFamily(self, parts, data)

    def problems(self, data: DataSpec, sampling: SamplingConfig) -> list[str]:
        """Of the distribution, and options that it does not have."""
        found = self.output.problems(data)
        if not self.output.takes_temperature and sampling.limited:
            found.append(
                "model.sampling: temperature, top_k, top_p and min_p have no effect on "
                f"network.output.kind={self.output.kind}; leave them out, or use categorical"
            )
        if sampling.decoding != "cache":
            found.append(
                f"model.sampling.decoding: {sampling.decoding} has no effect on network.kind={self.kind}; "
                "leave it out"
            )
        return found


class PixelFamily:
    """Implements `core.family.Family` and `HasLikelihood`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, network: PixelNetworkConfig, parts: Parts, data: DataSpec) -> None:
        self._data = data
        self._network, self._output = network, network.output
        self._dims = math.prod(data.shape)
        self._classes = parts.classes
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(
                build=lambda: network.network(data, parts.classes), optimizer=parts.optimizer
            ),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
        }
        self.likelihood_of = network.output.likelihood_of
        self.phases: Sequence[Phase] = (Phase(name="likelihood", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]. A conditional model without labels draws classes evenly.

        With `keep`, the first part of the image given as `prefix` is kept, in raster order.
        """
        options: SamplingConfig = request.options
        network = nets["ema"]
        device = next(network.parameters()).device
        label_N = request.tensor("label")
        if self._classes and label_N is None:
            label_N = rng.integers(self._classes)
        channels, height, width = self._data.shape
        uniform_NUHW = rng.uniform(channels + 1, height, width).to(device)
        given = prefix_of(request)
        kept = 0 if given is None else round(options.keep * height * width)

        def pixel(parameters: Tensor, row: int, column: int) -> Tensor:
            here = (slice(None), slice(None), slice(row, row + 1), slice(column, column + 1))
            if given is not None and row * width + column < kept:
                return given[here].to(device)
            return self._output.draw(parameters, uniform_NUHW[here], channels, options)

        labels = label_N.to(device) if self._classes and label_N is not None else None
        return self._network.draw_image(network, self._data.shape, rng.rows, labels, pixel)

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """Exact, [B]; with fewer than 256 levels that of the image in those levels, per dimension."""
        return self._nats(nets["ema"], batch, rng) / (self._dims * math.log(2))

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Negative log-likelihood in nats per dimension."""
        loss_B = self._nats(nets["network"], batch, rng) / self._dims
        return LossOut(loss_B, {"bits_per_dim": loss_B.detach() / math.log(2)})

    def _nats(self, network: nn.Module, batch: Batch, rng: Rng) -> Tensor:
        image_BCHW, label_B = batch["image"], batch["label"] if self._classes else None
        return self._output.nats(lambda x_BCHW: network(x_BCHW, label_B), image_BCHW, rng)
