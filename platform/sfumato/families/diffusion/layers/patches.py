"""Between images and the tokens of a transformer: patches, and their fixed positions.

B batch, T tokens, D width, P patch side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.layers.time_embedding import MAX_PERIOD


def tiling_problems(patch: int, data: DataSpec, what: str) -> list[str]:
    """Sides of the `what` (image, latent) that patches do not tile, one line each."""

    def nearest(side: int) -> int:
        return min((p for p in range(1, side + 1) if side % p == 0), key=lambda p: abs(p - patch))

    return [
        f"model.network.patch: {patch} does not divide the {what} {name} of {side}; use a {name} of "
        f"{max(1, round(side / patch)) * patch}, or a patch of {nearest(side)}"
        for name, side in (("height", data.height), ("width", data.width))
        if side % patch
    ]


def patch_embedding(channels: int, width: int, patch: int, bottleneck: int | None) -> nn.Module:
    """Images [B, C, H, W] to [B, D, H / P, W / P], by way of `bottleneck` channels if given (JiT)."""
    if bottleneck is None:
        return nn.Conv2d(channels, width, patch, stride=patch)
    return nn.Sequential(
        nn.Conv2d(channels, bottleneck, patch, stride=patch, bias=False), nn.Conv2d(bottleneck, width, 1)
    )


def initialise_patches(layer: nn.Module) -> None:
    """Draw a convolution's weights as those of a linear layer of the patch's values; others stay."""
    if not isinstance(layer, nn.Conv2d):
        return
    nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def unpatch(tokens_BTE: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Tokens in row-major order, each of P * P * C values ordered (row, column, channel), as [B, C, H, W]."""
    cut_BRCPPE = tokens_BTE.view(len(tokens_BTE), rows, columns, patch, patch, -1)
    return cut_BRCPPE.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed positions [T, D] in row-major order: the column in the first half of D, the row in the second.

    Each half holds sine, then cosine, of the coordinate times 10000^(-4 i / D), as the authors' code has it.
    """
    quarter = width // 4
    frequency = MAX_PERIOD ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    parts = []
    for coordinate in (column, row):
        angle = coordinate.flatten()[:, None] * frequency
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1).float()
