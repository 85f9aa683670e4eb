"""The flow family: one network, its average, one phase, and an exact likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.conditions import LABEL
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.flow.bijection import fitting
from sfumato.families.flow.config import FlowConfig, SamplingConfig
from sfumato.families.flow.dequantization import LEVELS, from_unit, to_levels
from sfumato.families.flow.network import FlowNetwork


class FlowBase:
    """What flows of images and of latents share: `core.family.Family`, `HasLatent` and
    `InitialisesFromData`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: FlowConfig, data: DataSpec) -> None:
        self._config = config
        self._data = data
        self._classes = data.num_classes if LABEL in config.conditions(data) else 0
        self._normal_noise = config.dequantization.normal_noise
        self._noise_std = config.dequantization.noise_std
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=self._build, optimizer=config.optimizer),
            "ema": EmaOf(source="network", decay=config.ema.decay),
        }
        self.phases: Sequence[Phase] = (
            Phase(name="likelihood", trains="network", loss=self._loss, clip_grad_norm=10.0),
        )

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged: this model works on pixels."""
        return batch

    def initialise(self, nets: Nets, batch: Batch, rng: Rng) -> None:
        """Set the actnorms by these rows (Kingma & Dhariwal 2018, sec. 3.1)."""
        with fitting(nets["network"]):
            self._bits_per_dim(nets["network"], batch, rng)

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] on the 256 levels, by the averaged network.

        A conditional model without labels cycles through all classes.
        """
        return from_unit(self._decode(nets, self.latents(nets, request.options, progress, rng), request))

    def latents(self, nets: Nets, options: SamplingConfig, progress: Progress, rng: SampleRng) -> Tensor:
        """The normal noise [N, C * H * W] of all levels."""
        return options.temperature * rng.normal(math.prod(self._data.shape))

    def decode_latents(self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress) -> Tensor:
        """Images [N, C, H, W] between the levels; the same as `sample`'s to half a level."""
        x_NCHW = self._decode(nets, z_ND, request)
        return (x_NCHW * LEVELS - 0.5).clamp(0, LEVELS - 1) / 127.5 - 1

    def _decode(self, nets: Nets, noise_ND: Tensor, request: SampleRequest) -> Tensor:
        """Continuous values from the averaged network, in [0, 1) except for errors of the flow."""
        network, options, label_N = nets["ema"], request.options, self._classes_of(request, len(noise_ND))
        assert isinstance(network, FlowNetwork)
        device = next(network.parameters()).device
        x_NCHW = network.decode(noise_ND.to(device), label_N.to(device), options.decoding)
        std = self._noise_std
        return denoised(network, x_NCHW, label_N.to(device), std) if std and options.denoise else x_NCHW

    def _classes_of(self, request: SampleRequest, rows: int) -> Tensor:
        """The classes [N] asked for: all in turn if none are, zero without classes."""
        label_N = request.tensor("label")
        if not self._classes:
            return torch.zeros(rows, dtype=torch.int64)
        return torch.arange(rows) % self._classes if label_N is None else label_N

    def _build(self) -> nn.Module:
        config, shape = self._config, self._data.shape
        levels = config.network.build_levels(shape, self._classes)
        dequantizer = config.dequantization.build(shape)
        return FlowNetwork(levels, dequantizer, shape, config.logit_alpha)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return LossOut(self._bits_per_dim(nets["network"], self._dropping_labels(batch, rng), rng))

    def _dropping_labels(self, batch: Batch, rng: Rng) -> Batch:
        """Some labels replaced by the class for none, where the network can be guided."""
        dropped = self._config.network.dropped
        if not (self._classes and dropped):
            return batch
        none_B = torch.full_like(batch["label"], self._classes)
        return {**batch, "label": torch.where(rng.uniform() < dropped, none_B, batch["label"])}

    def _bits_per_dim(self, network: nn.Module, batch: Batch, rng: Rng) -> Tensor:
        k_BCHW = to_levels(batch["image"])
        shape = self._data.shape
        noise_BCHW = rng.normal(*shape) if self._normal_noise else rng.uniform(*shape)
        log_p_B: Tensor = network(k_BCHW, noise_BCHW.to(k_BCHW.device), self._labels(batch))
        return -log_p_B / (math.prod(shape) * math.log(2))

    def _labels(self, batch: Batch) -> Tensor:
        """The classes [B] that the network sees; all zero if it sees none."""
        if self._classes:
            return batch["label"]
        image = batch["image"]
        return torch.zeros(len(image), dtype=torch.int64, device=image.device)


class FlowFamily(FlowBase):
    """Flows of images: `FlowBase`, `core.family.HasLikelihood` and `EncodesLatent`."""

    def encode_latents(
        self, nets: Nets, image_NCHW: Tensor, request: SampleRequest, progress: Progress
    ) -> Tensor:
        """The noise [N, D] that makes the images, each value in the middle of its level."""
        network = nets["ema"]
        assert isinstance(network, FlowNetwork)
        label_N = self._classes_of(request, len(image_NCHW)).to(image_NCHW.device)
        return network.encode((to_levels(image_NCHW) + 0.5) / LEVELS, label_N)

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """-log2 P of the 8-bit images, a value of each [B], by the averaged network.

        An upper bound by one draw of the dequantisation's noise, uniform or learned as the recipe says; its
        mean over draws is the bound, which only the dequantisation keeps from being exact.
        """
        return self._bits_per_dim(nets["ema"], batch, rng)


def denoised(network: FlowNetwork, y_BCHW: Tensor, label_B: Tensor, std: float) -> Tensor:
    """The expected image of which y is one with normal noise: y + std^2 d log p(y) / dy (Zhai et al. 2024,
    eq. 8, which is Tweedie's formula)."""
    with torch.enable_grad():
        y_BCHW = y_BCHW.detach().requires_grad_()
        (score_BCHW,) = torch.autograd.grad(network.log_density(y_BCHW, label_B).sum(), y_BCHW)
    return (y_BCHW + std**2 * score_BCHW).detach()
