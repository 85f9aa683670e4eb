"""The U-Net: diffusers' `UNet2DModel`, so that diffusers can load a trained network."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.layers.time_embedding import sinusoids
from sfumato.families.diffusion.networks import NetworkConfig
from sfumato.layers.group_norm import check_widths

if TYPE_CHECKING:
    from diffusers import UNet2DModel

EMBEDDING_PER_CHANNEL = 4
"""Width of diffusers' time embedding, of the first level's channels."""
SPAN_FREQUENCIES = 128


class UNetConfig(NetworkConfig):
    """A U-Net (diffusers' `UNet2DModel`); Ho et al. 2020, Dhariwal & Nichol 2021."""

    several_sizes: ClassVar[bool] = True  # it is made of convolutions and of attention without positions
    for_diffusers: ClassVar[bool] = True
    takes_spans: ClassVar[bool] = True
    kind: Literal["unet"] = Field("unet", description="Selects the U-Net.")
    channels: tuple[int, ...] = Field(
        (32, 64),
        min_length=1,
        description="Channels of each level; every level after the first halves the side.",
    )
    layers_per_block: int = Field(1, ge=1, description="Residual blocks of a level on the way down.")
    attention: tuple[int, ...] = Field(
        (), description="Levels with self-attention in their blocks; 0 is full resolution."
    )
    mid_attention: bool = Field(True, description="Self-attention in the block at the lowest resolution.")
    head_dim: int = Field(32, ge=1, description="Channels of an attention head.")
    norm_groups: int = Field(8, ge=1, description="Groups of every group normalisation.")
    time_conditioning: Literal["add", "scale_shift"] = Field(
        "scale_shift",
        description="How time and class enter a residual block: added (Ho et al. 2020), or as scale and "
        "shift of its normalisation (Dhariwal & Nichol 2021).",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the residual blocks.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_widths(self.channels, self.norm_groups)
        if self.channels[0] % 2:
            raise ValueError(f"channels: the first level has {self.channels[0]}, which must be even")
        levels = range(len(self.channels))
        if unknown := [level for level in self.attention if level not in levels]:
            raise ValueError(f"attention: there is no level {unknown[0]}; channels give 0 to {levels[-1]}")
        attending = {*self.attention, *([levels[-1]] if self.mid_attention else [])}
        for level in sorted(attending):
            if self.channels[level] % self.head_dim:
                raise ValueError(
                    f"head_dim: {self.head_dim} does not divide the {self.channels[level]} channels of "
                    f"level {level}, which has attention; the nearest that does is "
                    f"{_nearest_divisor(self.channels[level], self.head_dim)}"
                )
        return self

    def build(self, data: DataSpec, *, conditional: bool, outputs: int = 1, spans: bool = False) -> nn.Module:
        """The network, with weights drawn from torch's global generator."""
        if spans:
            return SpannedUNet(self, data, conditional=conditional, outputs=outputs)
        plain: nn.Module = build_unet(self, data, conditional=conditional, outputs=outputs)
        return plain

    def middle(self) -> tuple[str, int]:
        """The block at the lowest resolution."""
        return "mid_block", self.channels[-1]

    def couples_rows(self) -> bool:
        """Dropout draws one mask for a whole micro-batch."""
        return bool(self.dropout)

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of 8 and 16 channels."""
        return cls(channels=(8, 16), head_dim=8, norm_groups=4)

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Sides of the `what` that the levels cannot halve, one line each."""
        return halving_problems(len(self.channels), data, what)


class SpannedUNet(nn.Module):
    """A U-Net that also sees the length of a step; its embedding is added to those of time and class."""

    def __init__(self, config: UNetConfig, data: DataSpec, *, conditional: bool, outputs: int = 1) -> None:
        super().__init__()
        self.unet = build_unet(config, data, conditional=False, outputs=outputs, vectors=True)
        width = EMBEDDING_PER_CHANNEL * config.channels[0]
        self.embed_span = nn.Sequential(
            nn.Linear(SPAN_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.embed_label = nn.Embedding(data.num_classes + 1, width) if conditional else None

    def forward(
        self,
        x_BCHW: Tensor,
        t: Tensor,
        label_B: Tensor | None = None,
        return_dict: bool = False,
        span: Tensor | None = None,
    ) -> tuple[Tensor]:
        """`t` and `span` are scalars or [B]; the output has `outputs` times the channels of `x_BCHW`."""
        assert span is not None, "a network with spans needs them"
        span_B = span.to(x_BCHW.device).float().expand(len(x_BCHW))
        vector_BD = self.embed_span(sinusoids(span_B, SPAN_FREQUENCIES))
        if self.embed_label is not None:
            assert label_B is not None, "a class-conditional network needs labels"
            vector_BD = vector_BD + self.embed_label(label_B)
        return self.unet(x_BCHW, t, vector_BD, return_dict=False)  # type: ignore[no-any-return]


def build_unet(
    config: UNetConfig, data: DataSpec, *, conditional: bool, outputs: int = 1, vectors: bool = False
) -> UNet2DModel:
    """A U-Net with weights drawn from torch's global generator.

    A conditional network has one class embedding more than the data has classes: the last one, index
    `data.num_classes`, stands for no class (Ho & Salimans 2022). With `vectors`, it takes an embedding
    [B, 4 * channels[0]] in place of classes.
    """
    from diffusers import UNet2DModel  # takes seconds, so only when a network is built

    levels = range(len(config.channels))
    down = tuple("AttnDownBlock2D" if level in config.attention else "DownBlock2D" for level in levels)
    up = tuple("AttnUpBlock2D" if level in config.attention else "UpBlock2D" for level in reversed(levels))
    return UNet2DModel(
        sample_size=(data.height, data.width),
        in_channels=data.channels,
        out_channels=data.channels * outputs,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=down,
        up_block_types=up,
        add_attention=config.mid_attention,
        attention_head_dim=config.head_dim,
        norm_num_groups=config.norm_groups,
        resnet_time_scale_shift="default" if config.time_conditioning == "add" else "scale_shift",
        dropout=config.dropout,
        num_class_embeds=data.num_classes + 1 if conditional else None,
        class_embed_type="identity" if vectors else None,
    )


def halving_problems(levels: int, data: DataSpec, what: str) -> list[str]:
    """Sides of the `what` (image, latent) that so many levels cannot halve, one line each."""
    factor = 2 ** (levels - 1)
    return [
        f"model.network.channels: {levels} levels halve the {what} {levels - 1} times, which a {name} of "
        f"{side} does not allow; use a {name} of {max(1, round(side / factor)) * factor}, or "
        f"{_most_levels(side)} level(s)"
        for name, side in (("height", data.height), ("width", data.width))
        if side % factor
    ]


def _most_levels(side: int) -> int:
    """The number of levels that a side of this length allows: one more than how often 2 divides it."""
    return (side & -side).bit_length()


def _nearest_divisor(number: int, wish: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wish))


COMPONENT = UNetConfig
