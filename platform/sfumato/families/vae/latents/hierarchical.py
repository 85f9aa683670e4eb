"""The hierarchical VAE: groups of latents on grids from one pixel to the image's size (VDVAE; Child 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.vae.coders import NetworkConfig
from sfumato.families.vae.latents import LatentConfig, Parts
from sfumato.families.vae.likelihoods import LIKELIHOODS, LikelihoodConfig, bits_per_dim
from sfumato.families.vae.likelihoods.mixture import LogisticMixtureConfig
from sfumato.families.vae.sampling import SamplingConfig
from sfumato.families.vae.top_down import Block, Group, Step


class HierarchicalLatent(LatentConfig):
    """Groups of latents from coarse to fine: a very deep VAE (Child 2021)."""

    has_prior: ClassVar[bool] = True
    uses_network: ClassVar[bool] = False
    kind: Literal["hierarchical"] = Field("hierarchical", description="Selects the hierarchical VAE.")
    width: int = Field(64, ge=1, description="Channels of all features.")
    bottleneck: int = Field(4, ge=1, description="The middle of a block is narrower by this factor.")
    dim: int = Field(8, ge=1, description="Latent numbers of a group at every pixel of its grid.")
    groups: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (3, 3, 2, 1), min_length=1, description="Groups of each level, that of the image's size first."
    )
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (2, 2, 2, 1), min_length=1, description="The encoder's blocks of each level, likewise."
    )
    factors: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (2, 2, 7), description="By how much each level but the first is smaller than the one before."
    )
    free_bits: float = Field(
        0.0, ge=0, description="Nats of each group that cost nothing in training (Kingma et al. 2016)."
    )
    warmup_images: int = Field(
        0, ge=0, description="Images over which the weight of the KL term rises from 0 to 1."
    )
    likelihood: Annotated[LikelihoodConfig, LIKELIHOODS] = Field(
        LogisticMixtureConfig(), description="The distribution of pixels given the latents."
    )
    importance_samples: int = Field(
        1,
        ge=1,
        description="Draws in `bits_per_dim`: 1 gives the ELBO, more the importance-weighted bound "
        "(Burda et al. 2016). Training is not affected.",
    )

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if len(self.groups) != len(self.blocks) or len(self.factors) != len(self.groups) - 1:
            raise ValueError(
                f"groups: {len(self.groups)} levels need as many numbers in blocks and one less in factors, "
                f"got {len(self.blocks)} and {len(self.factors)}"
            )
        if not self.groups[-1]:
            raise ValueError("groups: the last level, the coarsest, needs at least one group")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Three groups on two levels."""
        return cls(
            width=4,
            bottleneck=2,
            dim=1,
            groups=(1, 1),
            blocks=(1, 1),
            factors=(4,),
            likelihood=LogisticMixtureConfig.tiny(),
            free_bits=0.01,
            importance_samples=2,
        )

    def build(self, parts: Parts, data: DataSpec) -> HierarchicalVae:
        """A VAE that draws."""
        return HierarchicalVae(parts, self, data)

    def problems(self, network: NetworkConfig, data: DataSpec) -> list[str]:
        """Sides that the factors do not divide."""
        whole = math.prod(self.factors)
        return [
            f"model.latent.factors: {'x'.join(map(str, self.factors))} need a {name} that is a multiple of "
            f"{whole}, got {side}; use {_divisors(side)}"
            for name, side in (("height", data.height), ("width", data.width))
            if side % whole
        ]

    def sides(self, data: DataSpec) -> list[tuple[int, int]]:
        """Height and width of each level's grid."""
        found = [(data.height, data.width)]
        for factor in self.factors:
            found.append((found[-1][0] // factor, found[-1][1] // factor))
        return found


class HierarchicalNetwork(nn.Module):
    """Encoder, groups, and the distribution of pixels at the end."""

    def __init__(self, latent: HierarchicalLatent, data: DataSpec, classes: int) -> None:
        super().__init__()
        width, middle = latent.width, max(1, latent.width // latent.bottleneck)
        sides = latent.sides(data)
        self._factors = latent.factors
        self.likelihood = latent.likelihood.build(data.channels)
        self.first = nn.Conv2d(data.channels, width, 3, padding=1)
        share = 1 / math.sqrt(sum(latent.blocks) + len(latent.factors))
        counts = [count + (level < len(latent.factors)) for level, count in enumerate(latent.blocks)]
        self.encoder = nn.ModuleList(
            Block(width, middle, width, min(side), last=share, residual=True)
            for count, side in zip(counts, sides, strict=True)
            for _ in range(count)
        )
        self._counts = counts
        share = 1 / math.sqrt(sum(latent.groups))
        self.groups = nn.ModuleList(
            Group(width, middle, latent.dim, min(side), share)
            for count, side in zip(reversed(latent.groups), reversed(sides), strict=True)
            for _ in range(count)
        )
        self._groups = list(reversed(latent.groups))
        self.biases = nn.ParameterList(torch.zeros(width, *side) for side in reversed(sides))
        self.classes = nn.Embedding(classes, width) if classes else None
        self.gain = nn.Parameter(torch.ones(width, 1, 1))
        self.shift = nn.Parameter(torch.zeros(width, 1, 1))
        self.last = nn.Conv2d(width, self.likelihood.outputs, 1)
        self.latent_shapes = [
            (latent.dim, *side)
            for count, side in zip(reversed(latent.groups), reversed(sides), strict=True)
            for _ in range(count)
        ]

    def forward(
        self, x_BCHW: Tensor, noise_BD: Tensor, label_B: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x | z) of a draw [B], the KL of each group [B, G], and log p(z) - log q(z | x) [B]."""
        output, steps = self.draw(noise_BD, label_B, self.features(x_BCHW))
        kl_BG = torch.stack([step.kl_B for step in steps], dim=1)
        log_ratio_B = torch.stack([step.log_ratio_B for step in steps]).sum(dim=0)
        return self.likelihood.log_prob(x_BCHW, output), kl_BG, log_ratio_B

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        """The encoder's features of each level, the coarsest first."""
        found, at = [], 0
        h = self.first(x_BCHW)
        for level, count in enumerate(self._counts):
            for index in range(count):
                if index == count - 1 and level < len(self._factors):  # this one leads down
                    found.append(h)
                h = self.encoder[at](h)
                at += 1
            if level < len(self._factors):
                h = F.avg_pool2d(h, self._factors[level])
        return [h, *reversed(found)]

    def draw(
        self, noise_BD: Tensor, label_B: Tensor | None, given: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Step]]:
        """The parameters of p(x | z) [B, O, H, W] and what the groups did, by the prior or given features."""
        parts = torch.split(noise_BD, [math.prod(shape) for shape in self.latent_shapes], dim=1)
        steps: list[Step] = []
        x_BWhw = self.biases[0].expand(len(noise_BD), -1, -1, -1)
        if self.classes is not None:
            x_BWhw = x_BWhw + self.classes(label_B)[:, :, None, None]
        for level, count in enumerate(self._groups):
            if level:
                x_BWhw = F.interpolate(x_BWhw, scale_factor=self._factors[-level]) + self.biases[level]
            for _ in range(count):
                number = len(steps)
                noise = parts[number].view(-1, *self.latent_shapes[number])
                step: Step = self.groups[number](x_BWhw, None if given is None else given[level], noise)
                steps.append(step)
                x_BWhw = step.x_BWhw
        output: Tensor = self.last(x_BWhw * self.gain + self.shift).float()
        return output, steps


class HierarchicalVae:
    """Implements `core.family.Family`, `HasLikelihood`, `HasLatent` and `Reconstructs`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, parts: Parts, latent: HierarchicalLatent, data: DataSpec) -> None:
        self._latent, self._data, self._classes = latent, data, parts.classes
        self._dims = math.prod(data.shape)
        grids = zip(latent.groups, latent.sides(data), strict=True)
        self._numbers = latent.dim * sum(count * height * width for count, (height, width) in grids)
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(
                build=lambda: HierarchicalNetwork(latent, data, parts.classes), optimizer=parts.optimizer
            ),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
        }
        self.likelihood_of = latent.likelihood.target_is
        self.phases: Sequence[Phase] = (Phase(name="elbo", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]. A conditional model without labels draws classes evenly."""
        options: SamplingConfig = request.options
        network = _of(nets)
        z_ND = self.latents(nets, options, progress, rng)
        label_N = request.tensor("label")
        if self._classes and label_N is None:
            label_N = rng.integers(self._classes)
        output = self._decode(network, z_ND, label_N)
        if options.pixels == "mean":
            return network.likelihood.mean(output)
        uniform = rng.uniform(network.likelihood.uniforms, *self._data.shape[1:])
        return network.likelihood.draw(output, uniform.to(output.device))

    def latents(self, nets: Nets, options: SamplingConfig, progress: Progress, rng: SampleRng) -> Tensor:
        """The normal noise [N, D] of all groups, times the temperature."""
        return options.temperature * rng.normal(self._numbers)

    def decode_latents(self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress) -> Tensor:
        """The expected images [N, C, H, W], also where `sample` would draw pixels around them."""
        network = _of(nets)
        return network.likelihood.mean(self._decode(network, z_ND, request.tensor("label")))

    def _decode(self, network: HierarchicalNetwork, z_ND: Tensor, label_N: Tensor | None) -> Tensor:
        device = network.gain.device
        classes_N = label_N.to(device) if self._classes and label_N is not None else None
        return network.draw(z_ND.to(device), classes_N)[0]

    def reconstruct(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """The expected image where every group takes its posterior's mean; draws nothing."""
        network, x_BCHW = _of(nets), batch["image"]
        zeros = x_BCHW.new_zeros(len(x_BCHW), self._numbers)
        output, _ = network.draw(zeros, self._label(batch), network.features(x_BCHW))
        return network.likelihood.mean(output)

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """The negative ELBO, or the importance-weighted bound (Burda et al. 2016, eq. 8), [B].

        Under a Bernoulli likelihood it is that of the binarised image, not of its 256 levels.
        """
        network, draws = _of(nets), self._latent.importance_samples
        x_BCHW = self._latent.likelihood.target(batch["image"], rng)
        found = []
        for _ in range(draws):
            noise_BD = rng.normal(self._numbers).to(x_BCHW.device)
            log_prob_B, kl_BG, log_ratio_B = network(x_BCHW, noise_BD, self._label(batch))
            found.append(log_prob_B - kl_BG.sum(dim=1) if draws == 1 else log_prob_B + log_ratio_B)
        bound_B = torch.logsumexp(torch.stack(found), dim=0) - math.log(draws)
        return bits_per_dim(-bound_B, self._dims)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """The negative ELBO in nats per dimension, groups below their free bits counted as these."""
        x_BCHW = self._latent.likelihood.target(batch["image"], rng)
        log_prob_B, kl_BG, _ = nets["network"](x_BCHW, rng.normal(self._numbers), self._label(batch))
        counted_B = kl_BG.clamp(min=self._latent.free_bits).sum(dim=1)
        warmup = self._latent.warmup_images
        weight = min(1.0, (progress.images + progress.batch) / warmup) if warmup else 1.0
        kl_B = kl_BG.detach().sum(dim=1)
        metrics = {"kl_nats": kl_B, "bits_per_dim": bits_per_dim(kl_B - log_prob_B.detach(), self._dims)}
        return LossOut((weight * counted_B - log_prob_B) / self._dims, metrics)

    def _label(self, batch: Batch) -> Tensor | None:
        return batch["label"] if self._classes else None


def _of(nets: Nets) -> HierarchicalNetwork:
    network = nets["ema"]
    assert isinstance(network, HierarchicalNetwork)
    return network


def _divisors(side: int) -> str:
    """The nearest fix: what divides this side."""
    found = [each for each in range(2, side + 1) if side % each == 0]
    return f"a product of factors among {', '.join(map(str, found))}" if found else "a single level"


COMPONENT = HierarchicalLatent
