"""The network of DiT: patches become tokens, blocks transform them under a condition, tokens become patches.

B batch, T tokens, D width, P patch side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.layers.patches import initialise_patches, patch_embedding, positions, unpatch
from sfumato.families.diffusion.layers.time_embedding import FREQUENCIES, embedding, sinusoids
from sfumato.families.diffusion.networks import Told
from sfumato.families.diffusion.networks.dit import DiTConfig
from sfumato.families.diffusion.networks.dit.blocks import DiTBlock, LastLayer, projector
from sfumato.families.diffusion.networks.dit.routing import Route
from sfumato.layers.rope import grid_angles


class DiT(nn.Module):
    """Called like diffusers' `UNet2DModel`: (x_BCHW, t, label_B, return_dict=False) -> (output_BCHW,).

    The last class embedding, index `data.num_classes`, stands for no class (Ho & Salimans 2022).
    """

    angles_TP: Tensor | None

    def __init__(
        self,
        config: DiTConfig,
        data: DataSpec,
        *,
        conditional: bool,
        outputs: int = 1,
        spans: bool = False,
        told: Told | None = None,
    ) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        self._patch = patch
        self._grid = (data.height // patch, data.width // patch)
        self.embed_patch = patch_embedding(data.channels, width, patch, config.bottleneck)
        self.embed_time = embedding(width)
        self.embed_span = embedding(width) if spans else None
        self.embed_label = nn.Embedding(data.num_classes + 1, width) if conditional else None
        self.registers_RD = nn.Parameter(torch.zeros(config.registers, width)) if config.registers else None
        self.blocks = nn.ModuleList(
            DiTBlock(
                width,
                config.heads,
                config.mlp_ratio,
                mlp=config.mlp,
                norm=config.norm,
                qk_norm=config.qk_norm,
            )
            for _ in range(config.depth)
        )
        self.last = LastLayer(width, patch * patch * data.channels * outputs, norm=config.norm)
        self._route, self._routed = config.route, config.routed
        self._told_after = 0 if told is None else told.depth
        self.projector = None if told is None else projector(told, width, self._grid)
        # Fixed, so that weights of another size of image differ in nothing but this.
        self.register_buffer("position_TD", positions(*self._grid, width), persistent=False)
        angles_TP = None
        if config.rope:
            angles_TP = grid_angles(*self._grid, width // config.heads, first=config.registers)
        self.register_buffer("angles_TP", angles_TP, persistent=False)
        self._initialise()

    def forward(
        self,
        x_BCHW: Tensor,
        t: Tensor,
        label_B: Tensor | None = None,
        return_dict: bool = False,
        span: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """`t` is a scalar or [B], of any float range and on any device (diffusers' schedulers keep their
        timesteps on the CPU), and so is `span`, for a network built with spans; the output has the shape of
        `x_BCHW`, but `outputs` times its channels. In training, what is to be told follows, [B, T, E]."""
        tokens_BTD = self.embed_patch(x_BCHW).flatten(2).transpose(1, 2) + self.position_TD
        condition_BD = self.embed_time(
            sinusoids(t.to(x_BCHW.device).float().expand(len(x_BCHW)), FREQUENCIES)
        )
        if self.embed_span is not None:
            assert span is not None, "a network with spans needs them"
            condition_BD = condition_BD + self.embed_span(
                sinusoids(span.to(x_BCHW.device).float().expand(len(x_BCHW)), FREQUENCIES)
            )
        if self.embed_label is not None:
            assert label_B is not None, "a class-conditional network needs labels"
            condition_BD = condition_BD + self.embed_label(label_B)
        condition_BD = F.silu(condition_BD)
        extra = 0
        if self.registers_RD is not None:
            extra = len(self.registers_RD)
            registers_BRD = self.registers_RD.expand(len(x_BCHW), -1, -1).to(tokens_BTD.dtype)
            tokens_BTD = torch.cat([registers_BRD, tokens_BTD], dim=1)
        tokens_BTD, told = self._through(tokens_BTD, condition_BD, extra)
        image_BCHW = unpatch(self.last(tokens_BTD[:, extra:], condition_BD), *self._grid, self._patch)
        return image_BCHW, *told

    def _through(
        self, tokens_BTD: Tensor, condition_BD: Tensor, extra: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The tokens after all blocks, and what is told on the way."""
        told: tuple[Tensor, ...] = ()
        route, all_BTD, angles = None, tokens_BTD, self.angles_TP
        for number, block in enumerate(self.blocks):
            if self.training and self._route and number == self._routed[0]:
                rows, tokens = tokens_BTD.shape[:2]
                route = Route.draw(rows, tokens, self._route, tokens_BTD.device, always=extra)
                all_BTD, tokens_BTD = tokens_BTD, route.leave(tokens_BTD)
                angles = route.angles(self.angles_TP)
            tokens_BTD = block(tokens_BTD, condition_BD, angles)
            if route is not None and number + 1 == self._routed[1]:
                tokens_BTD, angles, route = route.join(all_BTD, tokens_BTD), self.angles_TP, None
            if self.projector is not None and self.training and number + 1 == self._told_after:
                told = (self.projector(tokens_BTD[:, extra:]),)
        return tokens_BTD, told

    def _initialise(self) -> None:
        """The authors' initialisation: Xavier in linear layers, small embeddings, zero gates."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.embed_patch.apply(initialise_patches)
        if self.registers_RD is not None:
            nn.init.normal_(self.registers_RD, std=0.02)
        for layer in [*self.embed_time, *(self.embed_span or ())]:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        if self.embed_label is not None:
            nn.init.normal_(self.embed_label.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, (DiTBlock, LastLayer)):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.last.out.weight)
