"""Gated PixelCNN: the distribution of every pixel given those before it in raster order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import (
    EIGHT_BIT,
    EmaOf,
    LossOut,
    Nets,
    NetSpec,
    Phase,
    SampleRequest,
    Trainable,
)
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.autoregressive.config import (
    AutoregressiveConfig,
    CategoricalConfig,
    LogisticConfig,
    PixelCnnConfig,
    SamplingConfig,
)
from sfumato.families.autoregressive.draws import draw
from sfumato.families.autoregressive.gated import PixelCnnNetwork
from sfumato.families.autoregressive.raster import draw_image
from sfumato.layers.discretized_logistic import Mixture, to_level


class PixelCnn:
    """Implements `core.family.Family` and `HasLikelihood`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: AutoregressiveConfig, network: PixelCnnConfig, data: DataSpec) -> None:
        self._data = data
        self._output = network.output
        self._dims = math.prod(data.shape)
        self._classes = data.num_classes if config.conditions(data) else 0
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=lambda: self._build(network), optimizer=config.optimizer),
            "ema": EmaOf(source="network", decay=config.ema.decay),
        }
        self.likelihood_of = describe(network.output)
        self.phases: Sequence[Phase] = (Phase(name="likelihood", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch as it is."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]. A conditional model without labels draws them evenly."""
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
            if isinstance(self._output, LogisticConfig):
                return Mixture(parameters, channels, self._output.components).sample(noise)
            level_N = draw(
                parameters[:, :, 0, 0],
                noise[:, 0, 0, 0],
                temperature=options.temperature,
                top_k=options.top_k,
            )
            return to_level(level_N.float(), self._output.levels)[:, None, None, None]

        labels = label_N.to(device) if self._classes and label_N is not None else None
        return draw_image(network, self._data.shape, rng.rows, labels, pixel)

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """Exact, [B]; with fewer than 256 levels that of the image in those levels, per dimension."""
        return self._nats(nets["ema"], batch, rng) / (self._dims * math.log(2))

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Negative log-likelihood in nats a dimension."""
        loss_B = self._nats(nets["network"], batch, rng) / self._dims
        return LossOut(loss_B, {"bits_per_dim": loss_B.detach() / math.log(2)})

    def _nats(self, network: torch.nn.Module, batch: Batch, rng: Rng) -> Tensor:
        image_BCHW, label_B = batch["image"], batch["label"] if self._classes else None
        if isinstance(self._output, LogisticConfig):
            mixture = Mixture(network(image_BCHW, label_B), self._data.channels, self._output.components)
            return -mixture.log_prob(image_BCHW).flatten(1).sum(dim=1)
        level_B1HW = to_levels(self._output, image_BCHW, rng)
        logits_BLHW = network(to_level(level_B1HW.float(), self._output.levels), label_B)
        return F.cross_entropy(logits_BLHW, level_B1HW[:, 0], reduction="none").flatten(1).sum(dim=1)

    def _build(self, config: PixelCnnConfig) -> PixelCnnNetwork:
        channels, output = self._data.channels, config.output
        if isinstance(output, LogisticConfig):
            outputs = Mixture.size(channels, output.components)
        else:
            outputs = output.levels
        return PixelCnnNetwork(
            channels,
            outputs,
            width=config.width,
            layers=config.layers,
            kernel=config.kernel,
            head_width=config.head_width,
            classes=self._classes,
        )


def describe(config: CategoricalConfig | LogisticConfig) -> str:
    """What the likelihood is of, in words."""
    if isinstance(config, LogisticConfig) or config.levels == 256:
        return EIGHT_BIT
    if config.levels == 2 and config.binarization == "dynamic":
        return "the image made black and white by chance in proportion to its values"
    return f"the image in {config.levels} levels"


def to_levels(config: CategoricalConfig, image_BCHW: Tensor, rng: Rng) -> Tensor:
    """The level of each pixel, int64 in [0, levels): equal parts of 0..255, or a binarisation."""
    if config.levels == 2 and config.binarization == "dynamic":
        # The noise of an evaluation is drawn on the CPU, wherever the images are.
        uniform_BCHW = rng.uniform(*image_BCHW.shape[1:]).to(image_BCHW.device)
        return (uniform_BCHW < (image_BCHW + 1) / 2).long()
    byte = ((image_BCHW + 1) * 127.5).round().long()
    return byte * config.levels // 256
