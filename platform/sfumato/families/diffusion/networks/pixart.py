"""A diffusion transformer with cross-attention to texts: PixArt (Chen et al. 2024), diffusers' class.

Time modulates all blocks by one shared layer (adaLN-single, sec. 2.3); padding of texts is ignored. The
published size is heads 16, head_dim 72, depth 28, on 120 tokens of T5 of width 4096: 0.6 billion parameters.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.errors import ConfigError
from sfumato.families.diffusion.layers import initial
from sfumato.families.diffusion.layers.patches import tiling_problems
from sfumato.families.diffusion.networks import PipelineParts, TextNetworkConfig
from sfumato.text.states import States, TextShape


class PixArtConfig(TextNetworkConfig):
    """A transformer on patches with cross-attention (diffusers' `PixArtTransformer2DModel`)."""

    several_sizes: ClassVar[bool] = True
    hides_padding: ClassVar[bool] = True
    kind: Literal["pixart"] = Field("pixart", description="Selects the transformer with cross-attention.")
    patch: int = Field(2, ge=1, description="Side of a patch in pixels; a patch is a token.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    head_dim: int = Field(32, ge=4, multiple_of=4, description="Channels of a head.")
    depth: int = Field(6, ge=1, description="Transformer blocks.")

    @classmethod
    def tiny(cls) -> Self:
        """One block of 16 channels."""
        return cls(patch=4, heads=2, head_dim=8, depth=1)

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Sides of the `what` that the patches do not tile, one line each."""
        return tiling_problems(self.patch, data, what)

    def text_problems(self, text: TextShape) -> list[str]:
        """Without tokens there is nothing to attend to."""
        return [] if text.tokens else ["model.network: pixart attends to tokens; set uses=both"]

    def build_for_text(self, data: DataSpec, text: TextShape, *, outputs: int = 1) -> PixArt:
        """The network, with weights drawn from torch's global generator."""
        from diffusers import PixArtTransformer2DModel  # takes seconds, so only when a network is built

        transformer = PixArtTransformer2DModel(
            num_attention_heads=self.heads,
            attention_head_dim=self.head_dim,
            in_channels=data.channels,
            out_channels=data.channels * outputs,
            num_layers=self.depth,
            cross_attention_dim=self.heads * self.head_dim,
            sample_size=max(data.height, data.width),
            patch_size=self.patch,
            use_additional_conditions=False,
            caption_channels=text.width,
        )
        initial.pixart(transformer)
        return PixArt(transformer)

    def pipeline(self, parts: PipelineParts) -> Any:
        """`PixArtAlphaPipeline`: one encoder's last states, padding hidden."""
        from diffusers import PixArtAlphaPipeline

        encoder, network = parts.encoders[0], parts.network
        assert isinstance(network, PixArt)
        if parts.scheduler is None:
            raise ConfigError("PixArtAlphaPipeline needs model.objective.kind=ddpm")
        if len(parts.encoders) > 1 or encoder.layer_used != -1:
            raise ConfigError("PixArtAlphaPipeline has one text encoder and takes its last states: layer=-1")
        ((model, tokenizer),) = parts.models
        return PixArtAlphaPipeline(
            vae=parts.vae,
            text_encoder=model,
            tokenizer=tokenizer,
            transformer=network.transformer,
            scheduler=parts.scheduler,
        )


class PixArt(nn.Module):
    """Called with (x_BCHW, t, states, return_dict=False); returns (output_BCHW,)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_BCHW: Tensor, t: Tensor, text: States, return_dict: bool = False) -> tuple[Tensor]:
        """The output of the transformer."""
        found = self.transformer(
            x_BCHW,
            encoder_hidden_states=text.states,
            timestep=t.to(x_BCHW.device).expand(len(x_BCHW)),
            encoder_attention_mask=text.mask,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )
        return (found[0],)


COMPONENT = PixArtConfig
