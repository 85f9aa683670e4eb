"""DDPM++ and NCSN++: the U-Nets of score matching (Song et al. 2021, app. H), as EDM trains them (Karras et
al. 2022, app. F.1).

Published size for CIFAR-10: the defaults, 55.7 M parameters. DDPM++ halves by the mean of four pixels, and
reads the time by sinusoids. NCSN++ (`variant: ncsn++`) resamples through a smooth filter, reads the time by
random Fourier features, and adds the image, made smaller, at each level of the encoder.

A network with `changes` also sees how an image was changed before noise was added (`augmentation.py`), and
one with `spans` the length of a step.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.layers.time_embedding import MAX_PERIOD
from sfumato.families.diffusion.networks import NetworkConfig
from sfumato.families.diffusion.networks.unet import halving_problems
from sfumato.layers.resampling import SMOOTH, Down, Up

EMBEDDING = 4
"""Width of the embedding of time, class and changes, in widths of the first level."""
FOURIER_SPREAD = 16.0
"""Standard deviation of random frequencies (Song et al. 2021, app. C.1)."""
NEARLY_ZERO, SMALL = 1e-5, math.sqrt(0.2)
"""Factors on the initial weights of what ends a residual branch, and of the queries, keys and values."""
HALF = math.sqrt(0.5)


class DdpmppConfig(NetworkConfig):
    """DDPM++ or NCSN++ (Song et al. 2021, app. H)."""

    takes_spans: ClassVar[bool] = True
    takes_changes: ClassVar[bool] = True
    kind: Literal["ddpmpp"] = Field("ddpmpp", description="Selects DDPM++ or NCSN++.")
    variant: Literal["ddpm++", "ncsn++"] = Field(
        "ddpm++", description="ncsn++ has a smooth filter, Fourier features, and the image at every level."
    )
    width: int = Field(128, ge=4, description="Channels of the first convolution; a multiple of 4.")
    levels: tuple[int, ...] = Field(
        (2, 2, 2), min_length=1, description="Channels of each level, in widths; each halves the side."
    )
    blocks: int = Field(
        4, ge=1, description="Residual blocks of a level in the encoder; the decoder has one more."
    )
    attention: tuple[int, ...] = Field((1,), description="Levels with attention; 0 is full resolution.")
    dropout: float = Field(0.10, ge=0, lt=1, description="Dropout inside the residual blocks.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % 4:
            raise ValueError(f"width: must be a multiple of 4, got {self.width}")
        if unknown := [level for level in self.attention if not 0 <= level < len(self.levels)]:
            last = len(self.levels) - 1
            raise ValueError(f"attention: there is no level {unknown[0]}; levels give 0 to {last}")
        for level in self.levels:
            channels = level * self.width
            if channels % _groups(channels):
                raise ValueError(
                    f"levels: {channels} channels do not divide into {_groups(channels)} groups of "
                    "normalisation; choose a width that is a multiple of 32"
                )
        return self

    def build(
        self,
        data: DataSpec,
        *,
        conditional: bool,
        outputs: int = 1,
        spans: bool = False,
        changes: int = 0,
    ) -> nn.Module:
        """The network, with weights drawn from torch's global generator."""
        return DdpmppUNet(self, data, conditional=conditional, outputs=outputs, spans=spans, changes=changes)

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of 8 and 16 channels, without dropout."""
        return cls(width=8, levels=(1, 2), blocks=1, attention=(1,), dropout=0)

    def middle(self) -> tuple[str, int]:
        """The second block at the lowest resolution of the decoder."""
        return "decoder.1", self.levels[-1] * self.width

    def couples_rows(self) -> bool:
        """Dropout draws one mask for a whole micro-batch."""
        return bool(self.dropout)

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Sides of the `what` that the levels cannot halve, one line each."""
        return halving_problems(len(self.levels), data, what)


class DdpmppUNet(nn.Module):
    """Called like diffusers' `UNet2DModel`, with `span` [B] and `changes` [B, n] besides."""

    def __init__(
        self,
        config: DdpmppConfig,
        data: DataSpec,
        *,
        conditional: bool,
        outputs: int = 1,
        spans: bool = False,
        changes: int = 0,
    ) -> None:
        super().__init__()
        smooth = config.variant == "ncsn++"
        waves, embedding = config.width * (2 if smooth else 1), config.width * EMBEDDING
        self._classes, self._changes = data.num_classes, changes
        self.waves: nn.Module = FourierFeatures(waves) if smooth else Sinusoids(waves)
        self.embed_label = _linear(data.num_classes, waves) if conditional else None
        self.embed_changes = _linear(changes, waves, bias=False) if changes else None
        self.embed_span = _linear(waves, waves) if spans else None
        self.embed = nn.ModuleList([_linear(waves, embedding), _linear(embedding, embedding)])

        def block(inputs: int, channels: int, *, attends: bool = False, side: str = "keep") -> Block:
            return Block(
                inputs,
                channels,
                embedding,
                attends=attends,
                side=side,
                taps=SMOOTH if smooth else None,
                dropout=config.dropout,
            )

        now = config.width
        self.first = _convolution(data.channels, now)
        skips, self.encoder, self.images = [now], nn.ModuleList(), nn.ModuleList()
        image = data.channels
        for level, factor in enumerate(config.levels):
            if level:
                self.encoder.append(block(now, now, side="down"))
                if smooth:
                    self.images.append(Smaller(image, now))
                    image = now
                skips.append(now)
            for _ in range(config.blocks):
                self.encoder.append(block(now, factor * config.width, attends=level in config.attention))
                now = factor * config.width
                skips.append(now)
        self.decoder, self._joins = nn.ModuleList(), list[bool]()
        for level in reversed(range(len(config.levels))):
            if level == len(config.levels) - 1:
                self.decoder.extend([block(now, now, attends=True), block(now, now)])
                self._joins += [False, False]
            else:
                self.decoder.append(block(now, now, side="up"))
                self._joins.append(False)
            for number in range(config.blocks + 1):
                last = number == config.blocks
                attends = last and level in config.attention
                channels = config.levels[level] * config.width
                self.decoder.append(block(now + skips.pop(), channels, attends=attends))
                self._joins.append(True)
                now = channels
        self.norm = _norm(now)
        self.last = _convolution(now, data.channels * outputs, gain=NEARLY_ZERO)

    def forward(
        self,
        x_BCHW: Tensor,
        t: Tensor,
        label_B: Tensor | None = None,
        return_dict: bool = False,
        span: Tensor | None = None,
        changes: Tensor | None = None,
    ) -> tuple[Tensor]:
        """`t` and `span` are scalars or [B]; without `changes` the image is as it was. The output has
        `outputs` times the channels of `x_BCHW`."""
        rows = len(x_BCHW)
        vector_BD = self.waves(t.to(x_BCHW.device).float().expand(rows))
        if self.embed_label is not None:
            assert label_B is not None, "a class-conditional network needs labels"
            # The last class, which stands for none, has no column: its vector is zero.
            chosen_BK = F.one_hot(label_B, self._classes + 1)[:, : self._classes].float()
            vector_BD = vector_BD + self.embed_label(chosen_BK * math.sqrt(self._classes))
        if self.embed_changes is not None:
            # None are zeros, so that the layer is used wherever it is.
            told_BN = vector_BD.new_zeros(rows, self._changes) if changes is None else changes
            vector_BD = vector_BD + self.embed_changes(told_BN)
        if self.embed_span is not None:
            assert span is not None, "a network with spans needs them"
            waves_BD = self.waves(span.to(x_BCHW.device).float().expand(rows))
            vector_BD = vector_BD + self.embed_span(waves_BD)
        for layer in self.embed:
            vector_BD = F.silu(layer(vector_BD))
        x, image = self.first(x_BCHW), x_BCHW
        skips, smaller = [x], iter(self.images)
        for block in self.encoder:
            x = block(x, vector_BD)
            if self.images and block.side == "down":
                x = image = (x + next(smaller)(image)) * HALF
            skips.append(x)
        for joins, block in zip(self._joins, self.decoder, strict=True):
            x = block(torch.cat([x, skips.pop()], dim=1) if joins else x, vector_BD)
        return (self.last(F.silu(self.norm(x))),)


class Sinusoids(nn.Module):
    """A time [B] as [B, size] sines, then cosines, of frequencies from 1 down to 1/10,000."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._half = size // 2

    def forward(self, t_B: Tensor) -> Tensor:
        """[B, size]."""
        steps = torch.arange(self._half, dtype=torch.float32, device=t_B.device) / max(1, self._half - 1)
        angle_BF = t_B[:, None] * MAX_PERIOD**-steps
        return torch.cat([angle_BF.sin(), angle_BF.cos()], dim=1)


class FourierFeatures(nn.Module):
    """A time [B] as [B, size] sines, then cosines, of random frequencies."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", FOURIER_SPREAD * torch.randn(size // 2))

    def forward(self, t_B: Tensor) -> Tensor:
        """[B, size]."""
        angle_BF = t_B[:, None] * (2 * math.pi * self.frequencies)
        return torch.cat([angle_BF.sin(), angle_BF.cos()], dim=1)


class Block(nn.Module):
    """A residual block, with attention if it `attends`; its sum is scaled to keep the variance.

    `side` is keep, down or up; `taps` the filter of resampling, None for the mean of four pixels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        attends: bool,
        side: str,
        taps: tuple[int, ...] | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.side, self._dropout = side, dropout
        self.resample = _resampling(side, taps)
        self.norm_first, self.norm_second = _norm(inputs), _norm(outputs)
        self.first = _convolution(inputs, outputs)
        self.shift = _linear(embedding, outputs)
        self.second = _convolution(outputs, outputs, gain=NEARLY_ZERO)
        differs = inputs != outputs or side != "keep"
        self.skip = _convolution(inputs, outputs, 1) if differs else None
        self.norm_attention = _norm(outputs) if attends else None
        self.qkv = _convolution(outputs, 3 * outputs, 1, gain=SMALL) if attends else None
        self.project = _convolution(outputs, outputs, 1, gain=NEARLY_ZERO) if attends else None

    def forward(self, x_BCHW: Tensor, vector_BD: Tensor) -> Tensor:
        """[B, outputs, h, w]."""
        y = self.first(self.resample(F.silu(self.norm_first(x_BCHW))))
        y = F.silu(self.norm_second(y + self.shift(vector_BD)[:, :, None, None].to(y.dtype)))
        y = self.second(F.dropout(y, self._dropout, self.training))
        x: Tensor = self.resample(x_BCHW)
        x = (y + (x if self.skip is None else self.skip(x))) * HALF
        if self.norm_attention is None or self.qkv is None or self.project is None:
            return x
        added: Tensor = self.project(_attended(self.qkv(self.norm_attention(x))))
        return (x + added) * HALF


class Smaller(nn.Module):
    """The image at half its side, and at a level's channels: a convolution, then the smooth filter."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution, self.halve = _convolution(inputs, outputs), Down()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, outputs, H/2, W/2]."""
        halved: Tensor = self.halve(self.convolution(x_BCHW))
        return halved


def _attended(qkv_BCHW: Tensor) -> Tensor:
    """Attention of one head over the pixels, [B, C, H, W] from three times the channels."""
    q, k, v = (part.flatten(2).transpose(1, 2)[:, None] for part in qkv_BCHW.chunk(3, dim=1))
    mixed_B1TC = F.scaled_dot_product_attention(q, k, v)
    rows, _, height, width = qkv_BCHW.shape
    return mixed_B1TC.transpose(2, 3).reshape(rows, -1, height, width)


def _resampling(side: str, taps: tuple[int, ...] | None) -> nn.Module:
    if side == "keep":
        return nn.Identity()
    if taps is not None:
        return Down(taps) if side == "down" else Up(taps)
    return nn.AvgPool2d(2) if side == "down" else nn.Upsample(scale_factor=2, mode="nearest")


def _groups(channels: int) -> int:
    return min(32, channels // 4)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_groups(channels), channels, eps=1e-6)


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    _begin(layer, 1.0)
    return layer


def _convolution(inputs: int, outputs: int, kernel: int = 3, gain: float = 1.0) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    _begin(layer, gain)
    return layer


def _begin(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    """Xavier's uniform weights times `gain`, and zero biases."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


COMPONENT = DdpmppConfig
