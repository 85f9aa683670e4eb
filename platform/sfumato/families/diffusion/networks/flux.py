"""Flux (Black Forest Labs 2024): blocks of two streams as in MMDiT, then blocks of one; diffusers' class.

Positions are rotary, by row and column, so that images may have any size. The published size is depth 19,
single_depth 38, heads 24, head_dim 128 on 16 channels of latents, width 4096, pooled 768: 11.9 billion
parameters.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.layers import initial
from sfumato.families.diffusion.layers.patches import tiling_problems
from sfumato.families.diffusion.networks import TextNetworkConfig
from sfumato.text.states import States, TextShape

TIME_SCALE = 1000
"""The class multiplies its time by this; ours is multiplied already."""


class FluxConfig(TextNetworkConfig):
    """Blocks of two streams and of one (diffusers' `FluxTransformer2DModel`)."""

    several_sizes: ClassVar[bool] = True
    kind: Literal["flux"] = Field("flux", description="Selects the transformer of double and single blocks.")
    patch: int = Field(2, ge=1, description="Side of a patch in pixels; a patch is a token.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    head_dim: int = Field(
        32,
        ge=32,
        multiple_of=32,
        description="Channels of a head; 7/16 turn with the row, 7/16 with the column.",
    )
    depth: int = Field(2, ge=1, description="Blocks with weights of their own for texts and for images.")
    single_depth: int = Field(4, ge=1, description="Blocks with the same weights for both, after those.")

    @classmethod
    def tiny(cls) -> Self:
        """One block of each kind, one head."""
        return cls(patch=4, heads=1, depth=1, single_depth=1)

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Sides of the `what` that the patches do not tile, one line each."""
        return tiling_problems(self.patch, data, what)

    def text_problems(self, text: TextShape) -> list[str]:
        """It needs both tokens and pooled states."""
        if not text.tokens or not text.pooled:
            what = "tokens" if text.pooled else "a pooled state"
            return [f"model.network: flux needs {what} of texts too; set uses=both for an encoder"]
        return []

    def build_for_text(self, data: DataSpec, text: TextShape, *, outputs: int = 1) -> Flux:
        """The network, with weights drawn from torch's global generator."""
        from diffusers import FluxTransformer2DModel  # takes seconds, so only when a network is built

        values = data.channels * self.patch**2
        share = self.head_dim // 16
        transformer = FluxTransformer2DModel(
            in_channels=values,
            out_channels=values * outputs,
            num_layers=self.depth,
            num_single_layers=self.single_depth,
            attention_head_dim=self.head_dim,
            num_attention_heads=self.heads,
            joint_attention_dim=text.width,
            pooled_projection_dim=text.pooled,
            axes_dims_rope=(2 * share, 7 * share, 7 * share),
        )
        initial.adaln_zero(transformer)
        return Flux(transformer, self.patch)


class Flux(nn.Module):
    """Called with (x_BCHW, t, states, return_dict=False); returns (output_BCHW,). Padding is attended to."""

    def __init__(self, transformer: nn.Module, patch: int) -> None:
        super().__init__()
        self._patch = patch
        self.transformer = transformer

    def forward(self, x_BCHW: Tensor, t: Tensor, text: States, return_dict: bool = False) -> tuple[Tensor]:
        """The output of the transformer; patches hold their values by (channel, row, column)."""
        height, width = x_BCHW.shape[-2:]
        found = self.transformer(
            F.pixel_unshuffle(x_BCHW, self._patch).flatten(2).transpose(1, 2),
            encoder_hidden_states=text.states,
            pooled_projections=text.pooled,
            timestep=t.to(x_BCHW.device).expand(len(x_BCHW)) / TIME_SCALE,
            img_ids=self._places(height // self._patch, width // self._patch, x_BCHW.device),
            txt_ids=torch.zeros(text.states.shape[1], 3, device=x_BCHW.device),
            return_dict=False,
        )[0]
        tokens_BET = found.transpose(1, 2).unflatten(2, (height // self._patch, width // self._patch))
        return (F.pixel_shuffle(tokens_BET, self._patch),)

    def _places(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """(0, row, column) of each patch, [T, 3]."""
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places = torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)
        return places.float().to(device)


COMPONENT = FluxConfig
