"""Models trained to inpaint (Rombach et al. 2022, sec. 4.5; GLIDE, Nichol et al. 2022, sec. 2.4): a mask, and
the picture without what it hides, enter beside the noisy one.

Training draws masks of boxes and strokes, or takes those of a column. The order of channels is that of Stable
Diffusion's inpainting models: mask, then picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import KNOWN, MASK, Condition
from sfumato.core.rng import Rng
from sfumato.families.diffusion.adapters import Look
from sfumato.families.diffusion.adapting.concatenation import ConcatenatingConfig

STROKES, BRUSH = 4, 0.12
"""Points of a stroke, and the width of its brush as a share of the side."""


class InpaintingConfig(ConcatenatingConfig):
    """A model that sees what it is to leave alone."""

    pipeline: ClassVar[str] = "StableDiffusionInpaintPipeline"
    kind: Literal["inpainting"] = Field("inpainting", description="Selects training to inpaint.")
    masks: Literal["drawn", "column"] = Field(
        "drawn", description="Masks of training: boxes and strokes, drawn anew each time, or the column's."
    )
    column: str = Field(
        "mask",
        description="The column of masks, not black where the picture is to change: for samples drawn by the "
        "rows of a data set, and for training with masks=column.",
    )

    def further(self, channels: int) -> int:
        """The mask, and the picture or its latents."""
        return 1 + channels

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The picture and the mask, both required."""
        return (
            Condition(KNOWN, "image", "image", shape=data.shape, required=True),
            Condition(MASK, self.column, "image", shape=(1, data.height, data.width), required=True),
        )

    def shown(self, rows: Mapping[str, Any], look: Look) -> Tensor:
        """Mask [B, 1, h, w], 1 where the picture is to change, and picture [B, C, h, w], grey there."""
        image_BCHW: Tensor = rows["image"]
        if look.rng is not None and self.masks == "drawn":
            mask_B1HW = drawn_masks(look.rng, *image_BCHW.shape[-2:])
        else:
            mask_B1HW = (rows[self.column].mean(dim=1, keepdim=True) > -1).float()
        known_BChw = look.encode(image_BCHW * (1 - mask_B1HW))
        mask_B1hw = F.interpolate(mask_B1HW, size=known_BChw.shape[-2:])
        return torch.cat([mask_B1hw, known_BChw], dim=1)

    def data_problems(self, data: DataSpec) -> list[str]:
        """No column of masks where training needs one."""
        found = data.columns.get(self.column)
        if self.masks == "drawn" or (found is not None and found.kind == "image"):
            return []
        has = ", ".join(data.columns)
        return [f"model.adapter.column: the data has no masks {self.column!r}, only {has}; set masks=drawn"]

    @classmethod
    def tiny(cls) -> Self:
        """With the attention trained."""
        return cls(column="image", train=("*attn*",))


def drawn_masks(rng: Rng, height: int, width: int) -> Tensor:
    """[B, 1, height, width], 1 in a box of a quarter to three quarters of each side, or along a thick stroke
    of several straight parts; each is drawn for half of the rows. Functions of the draws of `rng` alone."""
    draw_BN = rng.uniform(5 + 2 * STROKES)
    device = draw_BN.device
    y_H1 = (torch.arange(height, device=device) + 0.5).view(-1, 1) / height
    x_1W = (torch.arange(width, device=device) + 0.5).view(1, -1) / width
    side_B2, at_B2 = 0.25 + 0.5 * draw_BN[:, 1:3], draw_BN[:, 3:5]
    low_B2 = at_B2 * (1 - side_B2)
    box_BHW = (
        (y_H1 >= low_B2[:, :1, None]) & (y_H1 < (low_B2 + side_B2)[:, :1, None])
        & (x_1W >= low_B2[:, 1:, None]) & (x_1W < (low_B2 + side_B2)[:, 1:, None])
    )  # fmt: skip
    points_BP2 = draw_BN[:, 5:].view(-1, STROKES, 2)
    stroke_BHW = torch.zeros_like(box_BHW)
    for start_B2, end_B2 in zip(points_BP2.unbind(1)[:-1], points_BP2.unbind(1)[1:], strict=True):
        stroke_BHW = stroke_BHW | (_distance(y_H1, x_1W, start_B2, end_B2) < BRUSH)
    chosen_BHW = torch.where((draw_BN[:, 0] < 0.5)[:, None, None], box_BHW, stroke_BHW)
    return chosen_BHW.float().unsqueeze(1)


def _distance(y_H1: Tensor, x_1W: Tensor, start_B2: Tensor, end_B2: Tensor) -> Tensor:
    """From each pixel to the straight part between two points (y, x), [B, H, W]."""
    way_B2 = end_B2 - start_B2
    dy, dx = y_H1 - start_B2[:, :1, None], x_1W - start_B2[:, 1:, None]
    along = dy * way_B2[:, :1, None] + dx * way_B2[:, 1:, None]
    share = (along / way_B2.square().sum(dim=1)[:, None, None].clamp(min=1e-12)).clamp(0, 1)
    across: Tensor = (dy - share * way_B2[:, :1, None]).square() + (dx - share * way_B2[:, 1:, None]).square()
    return across.sqrt()


COMPONENT = InpaintingConfig
