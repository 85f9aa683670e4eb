"""MMDiT, the transformer of Stable Diffusion 3: texts and images attend jointly (Esser et al. 2024),
diffusers' class.

Each block has weights of its own for either, and one attention over both; the pooled text joins the time. The
published sizes are depth 24 and heads 24 (3: 2.0 billion parameters, qk_norm false; 3.5 medium: 2.2, dual
13), depth and heads 38 (3.5 large: 8.1), each with head_dim 64, 16 channels of latents, width 4096, pooled
2048.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.errors import ConfigError
from sfumato.families.diffusion.layers import initial
from sfumato.families.diffusion.layers.patches import tiling_problems
from sfumato.families.diffusion.networks import PipelineParts, TextNetworkConfig
from sfumato.text.states import States, TextShape

_OF_SD3 = [(-2, False, "both"), (-2, True, "both"), (-1, False, "states")]
"""Layer, beside, uses of its encoders."""


class MMDiTConfig(TextNetworkConfig):
    """A transformer with joint attention (diffusers' `SD3Transformer2DModel`)."""

    several_sizes: ClassVar[bool] = True
    kind: Literal["mmdit"] = Field("mmdit", description="Selects the transformer with joint attention.")
    patch: int = Field(2, ge=1, description="Side of a patch in pixels; a patch is a token.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    head_dim: int = Field(32, ge=4, multiple_of=4, description="Channels of a head.")
    depth: int = Field(6, ge=1, description="Blocks of texts and images.")
    qk_norm: bool = Field(True, description="Normalise queries and keys (Stable Diffusion 3.5).")
    dual: int = Field(0, ge=0, description="So many first blocks attend within the image too (3.5 medium).")
    largest: int | None = Field(
        None,
        ge=1,
        description="Patches along the side of the largest image that has positions; smaller ones take the "
        "middle, and buckets of other shapes need their longest side. null: of the data's usual size.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.dual > self.depth:
            raise ValueError(f"dual: {self.dual} of depth={self.depth} blocks; give at most {self.depth}")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Two blocks of 16 channels, the first with attention within the image."""
        return cls(patch=4, heads=2, head_dim=8, depth=2, dual=1)

    def takes_several_sizes(self) -> bool:
        """With positions for the largest of them."""
        return self.largest is not None

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Sides of the `what` that the patches do not tile, or that have no positions, one line each."""
        patches = max(data.height, data.width) // self.patch
        if self.largest is not None and self.largest < patches:
            return [f"model.network.largest: {self.largest}, but the {what} has {patches} patches a side"]
        return tiling_problems(self.patch, data, what)

    def text_problems(self, text: TextShape) -> list[str]:
        """It needs both tokens and pooled states."""
        if not text.tokens or not text.pooled:
            what = "tokens" if text.pooled else "a pooled state"
            return [f"model.network: mmdit needs {what} of texts too; set uses=both for an encoder"]
        return []

    def build_for_text(self, data: DataSpec, text: TextShape, *, outputs: int = 1) -> MMDiT:
        """The network, with weights drawn from torch's global generator."""
        from diffusers import SD3Transformer2DModel  # takes seconds, so only when a network is built

        side = max(data.height, data.width)
        transformer = SD3Transformer2DModel(
            sample_size=side,
            patch_size=self.patch,
            in_channels=data.channels,
            num_layers=self.depth,
            attention_head_dim=self.head_dim,
            num_attention_heads=self.heads,
            joint_attention_dim=text.width,
            caption_projection_dim=self.heads * self.head_dim,
            pooled_projection_dim=text.pooled,
            out_channels=data.channels * outputs,
            pos_embed_max_size=self.largest or side // self.patch,
            dual_attention_layers=tuple(range(self.dual)),
            qk_norm="rms_norm" if self.qk_norm else None,
        )
        initial.adaln_zero(transformer)
        return MMDiT(transformer)

    def pipeline(self, parts: PipelineParts) -> Any:
        """`StableDiffusion3Pipeline`: two projected CLIPs side by side, by their layer before the last, then
        T5.
        """
        from diffusers import StableDiffusion3Pipeline

        network = parts.network
        assert isinstance(network, MMDiT)
        if parts.flow is None:
            raise ConfigError("StableDiffusion3Pipeline needs model.objective.kind=rectified_flow")
        asked = [(encoder.layer_used, encoder.beside, encoder.uses) for encoder in parts.encoders]
        if asked != _OF_SD3 or not parts.encoders[2].as_called:
            raise ConfigError(
                "StableDiffusion3Pipeline has three text encoders: two of CLIP with projections, "
                "layer=-2, the "
                "second with beside=true, and T5 with uses=states and mask=false"
            )
        (clip, tokens), (clip_2, tokens_2), (t5, tokens_3) = parts.models
        return StableDiffusion3Pipeline(
            transformer=network.transformer,
            scheduler=parts.flow,
            vae=parts.vae,
            text_encoder=clip,
            tokenizer=tokens,
            text_encoder_2=clip_2,
            tokenizer_2=tokens_2,
            text_encoder_3=t5,
            tokenizer_3=tokens_3,
        )


class MMDiT(nn.Module):
    """Called with (x_BCHW, t, states, return_dict=False); returns (output_BCHW,). Padding is attended to."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_BCHW: Tensor, t: Tensor, text: States, return_dict: bool = False) -> tuple[Tensor]:
        """The output of the transformer."""
        found = self.transformer(
            x_BCHW,
            encoder_hidden_states=text.states,
            pooled_projections=text.pooled,
            timestep=t.to(x_BCHW.device).expand(len(x_BCHW)),
            return_dict=False,
        )
        return (found[0],)


COMPONENT = MMDiTConfig
