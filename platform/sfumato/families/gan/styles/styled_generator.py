"""From latents to styles, and what generators with styles share (Karras et al. 2019, fig. 1)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.families.gan.layers.equalised import EqualLinear, activated, pixel_norm
from sfumato.families.gan.networks import Generated, GeneratorNet


class MappingNetwork(nn.Module):
    """Latents [B, D], or none, and classes to styles [B, style]."""

    def __init__(self, latent: int, style: int, classes: int, depth: int, rate: float) -> None:
        super().__init__()
        self.classes = classes
        self.embedding = EqualLinear(classes, style) if classes else None
        first = latent + (style if classes else 0)
        self.layers = nn.ModuleList(
            EqualLinear(inputs, style, rate=rate) for inputs in (first, *[style] * (depth - 1))
        )

    def forward(self, z_BD: Tensor | None, label_B: Tensor) -> Tensor:
        parts = [] if z_BD is None else [pixel_norm(z_BD)]
        if self.embedding is not None:
            one_hot_BK = F.one_hot(label_B, self.classes).float()
            parts.append(pixel_norm(self.embedding(one_hot_BK)))
        x_BS = torch.cat(parts, 1)
        for layer in self.layers:
            x_BS = activated(layer(x_BS))
        return x_BS


class StyledGenerator(GeneratorNet):
    """From latents to one style for each layer; a subclass makes images of them."""

    def __init__(self, mapping: nn.Module, styles: int) -> None:
        super().__init__()
        self.mapping, self.styles = mapping, styles

    def forward(
        self,
        z_BD: Tensor,
        label_B: Tensor,
        *,
        noise: Sequence[Tensor] | None = None,
        only_styles: bool = False,
        details: bool = False,
        **inputs: Any,
    ) -> Any:
        """Images [B, C, H, W]; with `only_styles`, styles [B, style]."""
        if only_styles:
            return self.mapping(z_BD, label_B)
        styles_BLS = self.styles_of(z_BD, label_B, **inputs)
        image_BCHW = self.synthesise(styles_BLS, noise)
        return Generated(image_BCHW, styles_BLS) if details else image_BCHW

    def styles_of(
        self,
        z_BD: Tensor,
        label_B: Tensor,
        *,
        second: Tensor | None = None,
        crossing: Tensor | None = None,
        until: Tensor | None = None,
        psi: float | None = None,
        centre: Tensor | None = None,
        moved: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """One style for each layer [B, layers, style]: truncated, moved, and mixed with those of others.

        Layers from `crossing` [B] on, and before `until` [B] if it is given, have the styles of `second`.
        """

        def style(latent_BD: Tensor) -> Tensor:
            w_BS: Tensor = self.mapping(latent_BD, label_B)
            if psi is not None and centre is not None:
                w_BS = centre + psi * (w_BS - centre)
            return w_BS if moved is None else w_BS + moved

        styles_BLS = style(z_BD)[:, None].expand(-1, self.styles, -1)
        if second is not None and crossing is not None:
            layers_L = torch.arange(self.styles, device=z_BD.device)
            taken_BL = layers_L >= crossing[:, None]
            if until is not None:
                taken_BL = taken_BL & (layers_L < until[:, None])
            styles_BLS = torch.where(taken_BL[:, :, None], style(second)[:, None], styles_BLS)
        return styles_BLS

    @abstractmethod
    def synthesise(self, styles_BLS: Tensor, noise: Sequence[Tensor] | None) -> Tensor:
        """Images [B, C, H, W] of styles [B, layers, style]."""

    @abstractmethod
    def affine_weights(self) -> list[Tensor]:
        """The maps [outputs, style] from styles to what they do in each layer."""
