"""EDM2's U-Net: layers that keep the magnitude of activations (Karras et al. 2024, configuration G).

Published sizes for 64x64x3 or latents of 64x64x4 and 1,000 classes: width 128 (XS, 125 M parameters), 192 (S,
280 M), 256 (M, 498 M), 320 (L, 777 M). It is meant for the objective `edm` with `uncertainty: true`, and for
`optimizer.unit_rows: ["*.weight"]`, which keeps rows at unit magnitude as the authors do.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.layers.magnitude import Block, Waves, Weights, joined, mixed, silu
from sfumato.families.diffusion.networks import NetworkConfig
from sfumato.families.diffusion.networks.unet import halving_problems

_UNCERTAINTY = 128


class Edm2Config(NetworkConfig):
    """EDM2's U-Net (Karras et al. 2024)."""

    tells_uncertainty: ClassVar[bool] = True
    kind: Literal["edm2"] = Field("edm2", description="Selects EDM2's U-Net.")
    width: int = Field(192, ge=2, description="Channels of the first level.")
    levels: tuple[int, ...] = Field(
        (1, 2, 3, 4), min_length=1, description="Channels of each level, in widths; each halves the side."
    )
    blocks: int = Field(
        3, ge=1, description="Residual blocks of a level in the encoder; the decoder has one more."
    )
    attention: tuple[int, ...] = Field((2, 3), description="Levels with attention; 0 is full resolution.")
    head_dim: int = Field(64, ge=1, description="Channels of an attention head.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the residual blocks.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for level in {*self.attention, len(self.levels) - 1}:
            if level >= len(self.levels):
                last = len(self.levels) - 1
                raise ValueError(f"attention: there is no level {level}; levels give 0 to {last}")
            channels = self.width * self.levels[level]
            if channels % self.head_dim:
                raise ValueError(
                    f"head_dim: {self.head_dim} does not divide the {channels} channels of level {level}, "
                    "which has attention"
                )
        return self

    def build(
        self, data: DataSpec, *, conditional: bool, outputs: int = 1, uncertain: bool = False
    ) -> nn.Module:
        """The network, with weights drawn from torch's global generator."""
        return Edm2UNet(self, data, conditional=conditional, outputs=outputs, uncertain=uncertain)

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of 8 and 16 channels."""
        return cls(width=8, levels=(1, 2), blocks=1, attention=(1,), head_dim=8)

    def couples_rows(self) -> bool:
        """Dropout draws one mask for a whole micro-batch."""
        return bool(self.dropout)

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Sides of the `what` that the levels cannot halve, one line each."""
        return halving_problems(len(self.levels), data, what)


class Edm2UNet(nn.Module):
    """Called like diffusers' `UNet2DModel`.

    An `uncertain` one in training also returns the logarithm of the variance of its error at this noise
    level, [B], which no layer but its own learns.
    """

    def __init__(
        self,
        config: Edm2Config,
        data: DataSpec,
        *,
        conditional: bool,
        outputs: int = 1,
        uncertain: bool = False,
    ) -> None:
        super().__init__()
        widths = [config.width * level for level in config.levels]
        embedding, last = max(widths), len(widths) - 1
        self._classes = data.num_classes + 1
        self.waves = Waves(widths[0])
        self.embed_time = Weights(widths[0], embedding)
        self.embed_label = Weights(self._classes, embedding) if conditional else None

        def block(
            inputs: int, level: int, *, decodes: bool, side: str = "keep", attends: bool = False
        ) -> Block:
            return Block(
                inputs,
                widths[level],
                embedding,
                decodes=decodes,
                side=side,
                head_dim=config.head_dim if attends else None,
                dropout=config.dropout,
            )

        self.first = Weights(data.channels + 1, widths[0], 3)
        skips, self.encoder = [widths[0]], nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                # The side is halved at the width of the level above.
                self.encoder.append(
                    Block(skips[-1], skips[-1], embedding, side="down", dropout=config.dropout)
                )
                skips.append(skips[-1])
            for _ in range(config.blocks):
                self.encoder.append(block(skips[-1], level, decodes=False, attends=level in config.attention))
                skips.append(width)
        now, self.decoder = widths[-1], nn.ModuleList()
        self._joins: list[bool] = []
        for level in reversed(range(len(widths))):
            if level == last:
                self.decoder.append(block(now, level, decodes=True, attends=True))
                self.decoder.append(block(now, level, decodes=True))
                self._joins += [False, False]
            else:
                self.decoder.append(
                    Block(now, now, embedding, decodes=True, side="up", dropout=config.dropout)
                )
                self._joins.append(False)
            for _ in range(config.blocks + 1):
                attends = level in config.attention
                self.decoder.append(block(now + skips.pop(), level, decodes=True, attends=attends))
                self._joins.append(True)
                now = widths[level]
        self.last = Weights(now, data.channels * outputs, 3)
        self.gain = nn.Parameter(torch.zeros(1))
        self.error_waves = Waves(_UNCERTAINTY) if uncertain else None
        self.error = Weights(_UNCERTAINTY, 1) if uncertain else None

    def forward(
        self, x_BCHW: Tensor, t: Tensor, label_B: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor, ...]:
        """`t` is a scalar or [B]; the output has the shape of `x_BCHW`, but `outputs` times its channels."""
        t_B = t.to(x_BCHW.device).float().expand(len(x_BCHW))
        embedding_BD = self.embed_time(self.waves(t_B))
        if self.embed_label is not None:
            assert label_B is not None, "a class-conditional network needs labels"
            chosen_BK = F.one_hot(label_B, self._classes).float() * math.sqrt(self._classes)
            embedding_BD = mixed(embedding_BD, self.embed_label(chosen_BK), 0.5)
        embedding_BD = silu(embedding_BD)
        x = self.first(torch.cat([x_BCHW, torch.ones_like(x_BCHW[:, :1])], dim=1))
        skips = [x]
        for block in self.encoder:
            x = block(x, embedding_BD)
            skips.append(x)
        for joins, block in zip(self._joins, self.decoder, strict=True):
            x = block(joined(x, skips.pop(), 0.5) if joins else x, embedding_BD)
        found_BCHW = self.last(x, self.gain)
        if not self.training or self.error is None or self.error_waves is None:
            return (found_BCHW,)
        return found_BCHW, self.error(self.error_waves(t_B)).flatten().float()


COMPONENT = Edm2Config
