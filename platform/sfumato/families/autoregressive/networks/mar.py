"""MAR (Li, Tian, Li, Deng, He 2024): masked autoregression over continuous latents, without quantisation.

training    a share of the latents' positions, at least 0.7, is masked; the transformer gives a vector for
            each, and the diffusion loss of its latent given the vector is minimised
round s     vectors for all masked positions; some of them, in random order, get a latent from the
            diffusion head, so that a share cos(pi s / 2S) remains masked
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, Frozen, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.first_stage import FirstStage, OpenStage, latent_of
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.autoregressive.layers.diffusion_head import STEPS, DiffusionHead, denoised, noisy
from sfumato.families.autoregressive.layers.masked_network import MaskedBlock
from sfumato.families.autoregressive.networks import ClassConditional, Parts
from sfumato.families.autoregressive.sampling import SamplingConfig
from sfumato.layers.latent_scale import ScalesLatents

TOKENS = "tokens"
LEAST_MASKED, SPREAD = 0.7, 0.25
"""Of the share that is masked: a normal distribution around 1 with this spread, cut off below."""


class MarConfig(ClassConditional):
    """Masked autoregression over the latents of a frozen autoencoder (MAR; Li et al. 2024)."""

    of_latents: ClassVar[bool] = True
    kind: Literal["mar"] = Field("mar", description="Selects MAR.")
    head_width: int = Field(128, ge=1, description="Channels of the diffusion head.")
    head_blocks: int = Field(3, ge=1, description="Residual blocks of the diffusion head.")
    head_steps: int = Field(100, ge=1, le=STEPS, description="Steps of the diffusion head in sampling.")
    repeats: int = Field(4, ge=1, description="Noise levels at which each masked latent is trained per step.")
    latent_scale: float = Field(
        1.0, gt=0, description="Factor on the latents that makes their variance about 1."
    )
    latent_norm: Literal["given", "whole", "channel"] = Field(
        "given",
        exclude_if=lambda value: value == "given",
        description="Whether the factor is latent_scale, or measured on the first batch and kept with the "
        "weights: one for all, or a factor and a shift for each channel.",
    )

    @property
    def completes(self) -> bool:
        """It draws positions in random order."""
        return False

    @classmethod
    def tiny(cls) -> Self:
        """One block of 8 channels, three steps of the head."""
        return cls(width=8, layers=1, heads=2, head_width=8, head_blocks=1, head_steps=3, repeats=1)

    def build(self, parts: Parts, data: DataSpec) -> Mar:
        """A model of latents."""
        assert parts.stage is not None, "problems() asks for it"
        return (Mar if self.latent_norm == "given" else MeasuringMar)(self, parts, parts.stage)

    def problems(self, data: DataSpec, sampling: SamplingConfig) -> list[str]:
        """Options of models of codes, and a factor that is measured."""
        plain, found = sampling.model_copy(update={"temperature": 1.0}), []
        if self.latent_norm != "given" and self.latent_scale != 1:
            measured = f"latent_norm={self.latent_norm} measures it; leave one out"
            found.append(f"model.network.latent_scale: {self.latent_scale:g}, but {measured}")
        if sampling.decoding != "cache" or plain.limited:
            idle = "decoding, top_k, top_p and min_p have no effect on mar; leave them out"
            found.append(f"model.sampling: {idle}")
        return found


class MarNetwork(ScalesLatents):
    """The transformer over latents, some of them masked, and the diffusion head."""

    def __init__(self, config: MarConfig, channels: int, length: int, classes: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, config.width)
        self.into = nn.Linear(channels, config.width)
        self.masked = nn.Parameter(0.02 * torch.randn(config.width))
        self.positions = nn.Parameter(0.02 * torch.randn(length + 1, config.width))
        self.blocks = nn.ModuleList(MaskedBlock(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = DiffusionHead(channels, config.width, config.head_width, config.head_blocks)
        nn.init.normal_(self.classes.weight, std=0.02)
        if config.latent_norm != "given":  # a given one is no part of the weights
            self.scale_latents(1.0, channels if config.latent_norm == "channel" else 0)

    def forward(
        self, x_BTC: Tensor, masked_BT: Tensor, label_B: Tensor, noise_RBTC: Tensor, t_RBT: Tensor
    ) -> Tensor:
        """The squared error of the noise at every position, [B, T], mean over R noise levels and channels."""
        z_BTD = self.vectors(x_BTC, masked_BT, label_B)
        noisy_RBTC = noisy(x_BTC.expand_as(noise_RBTC), t_RBT, noise_RBTC)
        z_RBTD = z_BTD.expand(len(noise_RBTC), -1, -1, -1)
        found = self.head(noisy_RBTC.flatten(0, 2), t_RBT.flatten(), z_RBTD.flatten(0, 2))
        error_BT: Tensor = (found.view(noise_RBTC.shape) - noise_RBTC).square().mean(dim=(0, 3))
        return error_BT

    def vectors(self, x_BTC: Tensor, masked_BT: Tensor, label_B: Tensor) -> Tensor:
        """z [B, T, D] of every position, from the class and what is not masked."""
        h_BTD = torch.where(masked_BT[..., None], self.masked.to(x_BTC.dtype), self.into(x_BTC))
        h_BTD = torch.cat([self.classes(label_B)[:, None], h_BTD], dim=1) + self.positions
        for block in self.blocks:
            h_BTD = block(h_BTD)
        z_BTD: Tensor = self.norm(h_BTD[:, 1:])
        return z_BTD


class Mar:
    """Implements `core.family.Family`."""

    samplers: Sequence[str] = ("ema", "first_stage")

    def __init__(self, config: MarConfig, parts: Parts, stage: OpenStage) -> None:
        self._config, self._classes = config, parts.classes
        self._latent = stage.spec.latent
        channels, length = self._latent[0], math.prod(self._latent[1:])
        self._length = length
        self._label_dropout = config.label_dropout if parts.classes else 0.0
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(
                build=lambda: MarNetwork(config, channels, length, parts.classes + 1),
                optimizer=parts.optimizer,
            ),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
            "first_stage": Frozen(build=stage.spec.build, weights=stage.stored),
        }
        self.phases: Sequence[Phase] = (Phase(name="diffusion", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """Adds the latents as tokens [B, T, C], drawn from the encoder's distribution and scaled."""
        stage = nets["first_stage"]
        assert isinstance(stage, FirstStage)
        latent = latent_of(stage, batch).sample(rng.normal(*self._latent))
        return {**batch, TOKENS: self._inward(nets, latent).flatten(2).transpose(1, 2)}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]; without labels a conditional model draws from no class."""
        network, stage, options = nets["ema"], nets["first_stage"], request.options
        assert isinstance(network, MarNetwork)
        assert isinstance(stage, FirstStage)
        asked_N = request.tensor("label") if self._classes else None
        device = network.masked.device
        label_N = torch.full((rng.rows,), self._classes) if asked_N is None else asked_N
        place_NT = rng.uniform(self._length).argsort(dim=1).to(device)  # the last is drawn first
        rank_NT = place_NT.argsort(dim=1)
        noise = rng.normal(self._config.head_steps + 1, self._length, self._latent[0]).to(device)
        x_NTC = torch.zeros_like(noise[:, 0])
        weight = options.guidance if asked_N is not None else 1.0
        left = self._length
        for done in range(1, options.steps + 1):
            masked_NT, before = rank_NT < left, left
            left = self._left(done, options.steps, left)
            at_NM1 = place_NT[:, left:before, None]
            drawn = self._drawn(network, x_NTC, masked_NT, at_NM1, label_N.to(device), noise, weight, options)
            x_NTC = x_NTC.scatter(1, at_NM1.expand_as(drawn), drawn)
            if not left:
                break
        return stage.decode(self._outward(nets, x_NTC.transpose(1, 2).reshape(-1, *self._latent)))

    def _inward(self, nets: Nets, z_BChw: Tensor) -> Tensor:
        return z_BChw * self._config.latent_scale

    def _outward(self, nets: Nets, x_BChw: Tensor) -> Tensor:
        return x_BChw / self._config.latent_scale

    def _left(self, done: int, rounds: int, left: int) -> int:
        """How many positions stay masked after a round; at least one is filled in."""
        if done == rounds:
            return 0
        return max(0, min(math.floor(self._length * math.cos(math.pi / 2 * done / rounds)), left - 1))

    def _drawn(
        self,
        network: MarNetwork,
        x_NTC: Tensor,
        masked_NT: Tensor,
        at_NM1: Tensor,
        label_N: Tensor,
        noise_NSTC: Tensor,
        weight: float,
        options: SamplingConfig,
    ) -> Tensor:
        """Latents [N, M, C] of the M positions of this round, by the guided head."""
        rows, count = at_NM1.shape[:2]
        steps, channels = noise_NSTC.shape[1], noise_NSTC.shape[3]
        chosen = at_NM1[:, None].expand(-1, steps, -1, channels)
        noise_SMC = noise_NSTC.gather(2, chosen).transpose(0, 1).reshape(steps, rows * count, channels)

        def vectors(given_N: Tensor) -> Tensor:
            z_NTD = network.vectors(x_NTC, masked_NT, given_N)
            return z_NTD.gather(1, at_NM1.expand(-1, -1, z_NTD.shape[2])).flatten(0, 1)

        z_MD = vectors(label_N)
        free_MD = None if weight == 1 else vectors(torch.full_like(label_N, self._classes))

        def predict(x_MC: Tensor, t_M: Tensor) -> Tensor:
            given: Tensor = network.head(x_MC, t_M, z_MD)
            if free_MD is None:
                return given
            free: Tensor = network.head(x_MC, t_M, free_MD)
            return free + weight * (given - free)

        return denoised(predict, noise_SMC, options.temperature).view(rows, count, channels)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """The diffusion loss of masked positions."""
        x_BTC = batch[TOKENS]
        length, repeats = self._length, self._config.repeats
        share_B = truncated(rng.uniform())
        count_B = (share_B * length).ceil().clamp(1, length)
        masked_BT = rng.uniform(length).argsort(dim=1).argsort(dim=1) < count_B[:, None]
        noise_RBTC = rng.normal(repeats, *x_BTC.shape[1:]).transpose(0, 1)
        t_RBT = rng.integers(STEPS, repeats, length).transpose(0, 1)
        error_BT = nets["network"](x_BTC, masked_BT, self._labels(batch, rng), noise_RBTC, t_RBT)
        return LossOut((error_BT * masked_BT).sum(dim=1) / count_B)

    def _labels(self, batch: Batch, rng: Rng) -> Tensor:
        """The class tokens, some dropped: the last one stands for no class."""
        none_B = torch.full((rng.rows,), self._classes, device=batch[TOKENS].device)
        if not self._classes:
            return none_B
        return torch.where(rng.uniform() < self._label_dropout, none_B, batch["label"])


class MeasuringMar(Mar):
    """`Mar` that measures the scale of latents; implements `core.family.InitialisesFromData` too."""

    def initialise(self, nets: Nets, batch: Batch, rng: Rng) -> None:
        """Set the latents' scale by these rows."""
        stage, network = nets["first_stage"], nets["network"]
        assert isinstance(stage, FirstStage)
        assert isinstance(network, MarNetwork)
        network.measure_latents(latent_of(stage, batch).sample(rng.normal(*self._latent)))

    def _inward(self, nets: Nets, z_BChw: Tensor) -> Tensor:
        network = nets["ema"]
        assert isinstance(network, MarNetwork)
        return network.inward(z_BChw)

    def _outward(self, nets: Nets, x_BChw: Tensor) -> Tensor:
        network = nets["ema"]
        assert isinstance(network, MarNetwork)
        return network.outward(x_BChw)


def truncated(uniform_B: Tensor) -> Tensor:
    """Shares in [0.7, 1] of a normal distribution around 1, cut off, by inversion."""
    low = torch.special.ndtr(torch.tensor((LEAST_MASKED - 1) / SPREAD)).item()
    share_B: Tensor = 1 + SPREAD * torch.special.ndtri(low + uniform_B * (0.5 - low))
    return share_B.clamp(LEAST_MASKED, 1.0)


COMPONENT = MarConfig
