"""The U-Net of Stable Diffusion: levels attend to the states of texts (diffusers' `UNet2DConditionModel`).

Rombach et al. 2022, sec. 3.3; Podell et al. 2023 for deeper transformers and the pooled text. Published sizes
(the width and the pooled state are those of the encoders):

    Stable Diffusion 1   channels [320, 640, 1280, 1280], heads 8; width 768
    Stable Diffusion 2   channels [320, 640, 1280, 1280], head_dim 64, linear true; width 1024
    SDXL                 channels [320, 640, 1280], attention [1, 2], depth [1, 2, 10], head_dim 64,
                         linear true, pooled_with_size [1024, 1024]; width 2048, pooled 1280
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.errors import ConfigError
from sfumato.families.diffusion.networks import PipelineParts, TextNetworkConfig
from sfumato.families.diffusion.networks.unet import halving_problems
from sfumato.layers.group_norm import check_widths
from sfumato.text.states import States, TextShape

_OF_XL = [(-2, False, "states"), (-2, True, "both")]
"""Layer, beside, uses of SDXL's encoders."""
SIZE_CHANNELS = 256
"""Channels of each of the six numbers of SDXL's sizes."""


class TextUNetConfig(TextNetworkConfig):
    """A U-Net with cross-attention (diffusers' `UNet2DConditionModel`); Rombach et al. 2022."""

    several_sizes: ClassVar[bool] = True
    kind: Literal["unet_text"] = Field("unet_text", description="Selects the U-Net with cross-attention.")
    channels: tuple[int, ...] = Field(
        (64, 128, 256),
        min_length=1,
        description="Channels of each level; every level after the first halves the side.",
    )
    layers_per_block: int = Field(2, ge=1, description="Residual blocks of a level on the way down.")
    attention: tuple[int, ...] | None = Field(
        None, description="Levels with transformers; 0 is full resolution. null: all but the last."
    )
    depth: int | tuple[int, ...] = Field(1, description="Blocks of a transformer: one number, or by level.")
    head_dim: int = Field(32, ge=1, description="Channels of an attention head.")
    heads: int | None = Field(None, ge=1, description="Heads of every level, instead of head_dim.")
    norm_groups: int = Field(32, ge=1, description="Groups of every group normalisation.")
    linear: bool = Field(False, description="Linear layers around transformers instead of 1x1 convolutions.")
    mask: bool = Field(
        False, description="Ignore padding. Stable Diffusion attends to it, as diffusers' pipelines do."
    )
    pooled_with_size: tuple[int, int] | None = Field(
        None,
        description="Add the pooled text, and the image's height and width, to the time embedding (SDXL), as "
        "of images that were neither resized nor cropped.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the residual blocks.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_widths(self.channels, self.norm_groups)
        levels = len(self.channels)
        if unknown := [level for level in self.attention or () if not 0 <= level < levels]:
            raise ValueError(f"attention: there is no level {unknown[0]}; channels give 0 to {levels - 1}")
        if isinstance(self.depth, tuple) and len(self.depth) != levels:
            raise ValueError(f"depth: got {len(self.depth)} for {levels} levels; give one each")
        for level in {*self.levels, levels - 1}:  # the middle attends too
            if self.channels[level] % (self.heads or self.head_dim):
                name, value = ("heads", self.heads) if self.heads else ("head_dim", self.head_dim)
                raise ValueError(
                    f"{name}: {value} does not divide the {self.channels[level]} channels of level {level}"
                )
        return self

    @property
    def levels(self) -> tuple[int, ...]:
        """Those with transformers."""
        return tuple(range(len(self.channels) - 1)) if self.attention is None else self.attention

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of 8 and 16 channels."""
        return cls(channels=(8, 16), layers_per_block=1, head_dim=8, norm_groups=4)

    @property
    def inner(self) -> str:
        """The U-Net."""
        return "unet"

    def couples_rows(self) -> bool:
        """Dropout draws one mask for a whole micro-batch."""
        return bool(self.dropout)

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Sides of the `what` that the levels cannot halve, one line each."""
        return halving_problems(len(self.channels), data, what)

    def text_problems(self, text: TextShape) -> list[str]:
        """Without tokens there is nothing to attend to."""
        if not text.tokens:
            return ["model.network: unet_text attends to tokens; let an encoder have uses=both or states"]
        if self.pooled_with_size is not None and not text.pooled:
            return ["model.network.pooled_with_size: no encoder gives a pooled state; set uses=both for one"]
        return []

    def build_for_text(self, data: DataSpec, text: TextShape, *, outputs: int = 1) -> TextUNet:
        """The network, with weights drawn from torch's global generator."""
        from diffusers import UNet2DConditionModel  # takes seconds, so only when a network is built

        levels, attending = range(len(self.channels)), self.levels
        heads = tuple(self.heads or width // self.head_dim for width in self.channels)
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_CHANNELS,
            "projection_class_embeddings_input_dim": text.pooled + 6 * SIZE_CHANNELS,
        }
        unet = UNet2DConditionModel(
            sample_size=(data.height, data.width),
            in_channels=data.channels,
            out_channels=data.channels * outputs,
            block_out_channels=self.channels,
            layers_per_block=self.layers_per_block,
            down_block_types=tuple(
                "CrossAttnDownBlock2D" if level in attending else "DownBlock2D" for level in levels
            ),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if level in attending else "UpBlock2D" for level in reversed(levels)
            ),
            transformer_layers_per_block=self.depth,
            attention_head_dim=heads,  # the library's name for the number of heads
            norm_num_groups=self.norm_groups,
            cross_attention_dim=text.width,
            use_linear_projection=self.linear,
            dropout=self.dropout,
            **(added if self.pooled_with_size is not None else {}),
        )
        return TextUNet(unet, mask=self.mask, size=self.pooled_with_size)

    def pipeline(self, parts: PipelineParts) -> Any:
        """`StableDiffusionPipeline`: one encoder's last states. With the pooled text and sizes that of SDXL:
        two encoders side by side, by their layer before the last. Both attend to padding.
        """
        network, xl = parts.network, self.pooled_with_size is not None
        assert isinstance(network, TextUNet)
        name = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
        if parts.scheduler is None:
            raise ConfigError(f"{name} needs model.objective.kind=ddpm")
        if self.mask:
            raise ConfigError(f"{name} attends to padding: train with model.network.mask=false")
        return self._of_xl(network, parts) if xl else self._of_one(network, parts)

    def _of_one(self, network: TextUNet, parts: PipelineParts) -> Any:
        from diffusers import StableDiffusionPipeline

        if len(parts.encoders) > 1 or not parts.encoders[0].as_called:
            raise ConfigError(
                "StableDiffusionPipeline has one text encoder and takes its last states: layer=-1, mask=false"
            )
        ((model, tokenizer),) = parts.models
        return StableDiffusionPipeline(
            vae=parts.vae,
            text_encoder=model,
            tokenizer=tokenizer,
            unet=network.unet,
            scheduler=parts.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def _of_xl(self, network: TextUNet, parts: PipelineParts) -> Any:
        from diffusers import StableDiffusionXLPipeline

        asked = [(encoder.layer_used, encoder.beside, encoder.uses) for encoder in parts.encoders]
        if asked != _OF_XL:
            raise ConfigError(
                "StableDiffusionXLPipeline has two text encoders of CLIP with layer=-2: one with "
                "uses=states, "
                "and one with a projection and beside=true"
            )
        (clip, tokens), (clip_2, tokens_2) = parts.models
        return StableDiffusionXLPipeline(
            vae=parts.vae,
            text_encoder=clip,
            tokenizer=tokens,
            text_encoder_2=clip_2,
            tokenizer_2=tokens_2,
            unet=network.unet,
            scheduler=parts.scheduler,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )


class TextUNet(nn.Module):
    """Called with (x_BCHW, t, states, return_dict=False); returns (output_BCHW,)."""

    def __init__(self, unet: nn.Module, *, mask: bool = False, size: tuple[int, int] | None = None) -> None:
        """`mask` hides padding; `size` is what SDXL is told of every image."""
        super().__init__()
        self.masked, self.size = mask, size
        self.unet = unet

    def forward(
        self, x_BCHW: Tensor, t: Tensor, text: States, return_dict: bool = False, **more: Any
    ) -> tuple[Tensor]:
        """The output of the U-Net, which gets `more` of what it takes."""
        found = self.unet(
            x_BCHW,
            t,
            encoder_hidden_states=text.states,
            encoder_attention_mask=text.mask if self.masked else None,
            added_cond_kwargs=None if self.size is None else sizes_added(text, self.size),
            return_dict=False,
            **more,
        )
        return (found[0],)


def sizes_added(text: States, size: tuple[int, int]) -> dict[str, Tensor]:
    """What SDXL is told: the pooled text, original size, the corner of the crop, and the size after it."""
    sizes = torch.tensor([*size, 0, 0, *size], device=text.pooled.device, dtype=text.pooled.dtype)
    return {"text_embeds": text.pooled, "time_ids": sizes.expand(len(text.pooled), 6)}


COMPONENT = TextUNetConfig
