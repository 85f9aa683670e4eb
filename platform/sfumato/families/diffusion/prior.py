"""The prior of unCLIP: from a text to the embedding of an image (Ramesh et al. 2022, sec. 2.2).

A transformer reads the text's tokens, its pooled state, the time, the noisy embedding and a last token of its
own, above which stands its prediction of the embedding without noise; the loss is that prediction's square
error (eq. 2). Departures: attention sees all tokens, and of two drawn embeddings none is chosen by the text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.schedules import EmaSchedule
from sfumato.text.condition import TextCondition
from sfumato.text.network import TextConditioned
from sfumato.text.states import States, TextShape

NAME, AVERAGE = "prior", "prior_ema"
_LEAST = 1e-4


class PriorConfig(Config):
    """Size and sampling of the prior."""

    width: int = Field(128, ge=8, description="Channels of a token.")
    depth: int = Field(4, ge=1, description="Transformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads; they divide the width.")
    steps: int = Field(20, ge=1, description="Steps from noise to an embedding.")
    guidance: float = Field(1.0, ge=0, description="Guidance away from the empty text; 1 is none.")


class PriorNetwork(nn.Module):
    """Called with (z_BD, t_B in [0, 1], `States`); returns the embedding without noise, [B, D]."""

    def __init__(self, config: PriorConfig, length: int, text: TextShape) -> None:
        super().__init__()
        width = config.width
        self.words = nn.Linear(text.width, width) if text.tokens else None
        self.whole = nn.Linear(text.pooled, width) if text.pooled else None
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.noisy = nn.Linear(length, width)
        self.last = nn.Parameter(0.02 * torch.randn(width))
        self.places = nn.Parameter(0.02 * torch.randn(text.tokens + 4, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config.heads, 4 * width, 0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, length))

    def forward(self, z_BD: Tensor, t_B: Tensor, text: States) -> Tensor:
        """See the class."""
        rows, width = len(z_BD), self.last.shape[0]
        own = [self.time(times(t_B, width)), self.noisy(z_BD), self.last.expand(rows, -1)]
        if self.whole is not None:
            own = [self.whole(text.pooled), *own]
        tokens_BTC = torch.stack(own, dim=1)
        hidden_BT = torch.zeros(tokens_BTC.shape[:2], dtype=torch.bool, device=z_BD.device)
        if self.words is not None:
            tokens_BTC = torch.cat([self.words(text.states), tokens_BTC], dim=1)
            hidden_BT = torch.cat([~text.mask, hidden_BT], dim=1)
        x_BTC = tokens_BTC + self.places[: tokens_BTC.shape[1]]
        for block in self.blocks:
            x_BTC = block(x_BTC, src_key_padding_mask=hidden_BT)
        found_BD: Tensor = self.out(x_BTC[:, -1])
        return found_BD.float()


class Prior:
    """The prior of one model: its networks, its phase, and what it draws.

    Embeddings have a deviation of about one in every direction (`unit`).
    """

    samplers: Sequence[str] = (AVERAGE,)

    def __init__(
        self,
        config: PriorConfig,
        length: int,
        text: TextCondition,
        optimizer: OptimizerConfig,
        ema: EmaSchedule,
        column: str,
    ) -> None:
        self._config, self._length, self._text, self._column = config, length, text, column
        self.nets: Mapping[str, NetSpec] = {
            NAME: Trainable(build=self._build, optimizer=optimizer),
            AVERAGE: EmaOf(source=NAME, decay=ema.decay),
        }
        self.phase = Phase(name=NAME, trains=NAME, loss=self._loss)

    def draw(self, nets: Nets, request: SampleRequest, rng: SampleRng) -> Tensor:
        """Embeddings [N, D] of the request's texts, by DDIM (Song et al. 2021) without noise on the way."""
        network = nets[AVERAGE]
        assert isinstance(network, TextConditioned)
        device = next(network.parameters()).device
        weight = self._config.guidance
        texts, away = self._text.asked(_plain(request), request.num, weight)
        seen = [network.encoded(self._text.inputs(nets, each, device)) for each in (texts, away) if each]
        z_ND = rng.branch(NAME).normal(self._length).to(device)
        levels = torch.linspace(1, 0, self._config.steps + 1).tolist()
        for now, after in pairwise(levels):
            t_N = torch.full((request.num,), now, device=device)
            found = [network(z_ND, t_N, inputs) for inputs in seen]
            image_ND = found[0] if len(found) == 1 else found[1] + weight * (found[0] - found[1])
            (signal, noise), (signal_to, noise_to) = (rates(torch.tensor(level)) for level in (now, after))
            z_ND = signal_to * image_ND + noise_to * (z_ND - signal * image_ND) / noise
        return z_ND

    def _build(self) -> nn.Module:
        return self._text.wrap(PriorNetwork(self._config, self._length, self._text.config.shape()))

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        z_BD = unit(batch[self._column])
        t_B = rng.uniform()
        signal_B, noise_B = rates(t_B)
        noisy_BD = signal_B[:, None] * z_BD + noise_B[:, None] * rng.normal(self._length)
        found_BD = nets[NAME](noisy_BD, t_B, self._text.of(batch))
        return LossOut((found_BD - z_BD).square().mean(dim=1))


def unit(embedding_BD: Tensor) -> Tensor:
    """The embedding's direction, as long as a draw of N(0, I) is on average."""
    return F.normalize(embedding_BD.float(), dim=1) * math.sqrt(embedding_BD.shape[1])


def rates(t: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of signal and noise at times in [0, 1], by the cosine schedule (Nichol & Dhariwal 2021)."""
    angle = (t.clamp(0, 1) * (math.pi / 2)).clamp(_LEAST, math.pi / 2 - _LEAST)
    return angle.cos(), angle.sin()


def times(t_B: Tensor, width: int) -> Tensor:
    """Sines and cosines of times in [0, 1], [B, width]."""
    half = width // 2
    rate = torch.exp(-math.log(10_000) * torch.arange(half, device=t_B.device) / half)
    angle_BH = 1000 * t_B[:, None] * rate
    return F.pad(torch.cat([angle_BH.sin(), angle_BH.cos()], dim=1), (0, width - 2 * half))


def _plain(request: SampleRequest) -> Any:
    """The request without texts to be guided away from: those are for the decoder."""
    kept = {name: value for name, value in request.conditions.items() if not name.startswith("negative_")}
    return SampleRequest(num=request.num, options=request.options, conditions=kept)
