"""Segmentation maps (Wang et al. 2022, semantic diffusion; Rombach et al. 2022, sec. 4.3.2): one channel for
each class of things says where it is.

The map is an image column of one channel whose value is the number of the class times `step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.families.diffusion.adapters import Look
from sfumato.families.diffusion.adapting.concatenation import ConcatenatingConfig

MAP = "map"


class SegmentationConfig(ConcatenatingConfig):
    """Where everything is to be."""

    kind: Literal["segmentation"] = Field("segmentation", description="Selects control by a map of classes.")
    column: str = Field("mask", description="The column of the data that holds the map.")
    classes: int = Field(7, ge=2, le=256, description="Classes of the map, the background among them.")
    step: int = Field(40, ge=1, le=255, description="Difference in value between a class and the next.")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of maps that training replaces by none, for image_guidance."
    )

    def further(self, channels: int) -> int:
        """One for each class."""
        return self.classes

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The map, required."""
        return (Condition(MAP, self.column, "image", shape=(1, data.height, data.width), required=True),)

    def shown(self, rows: Mapping[str, Any], look: Look) -> Tensor:
        """1 where the class is, else 0; on latents at the nearest pixel."""
        value_BHW = (rows[self.column][:, 0] + 1) * 127.5
        class_BHW = (value_BHW / self.step).round().long().clamp(0, self.classes - 1)
        shown_BKHW = F.one_hot(class_BHW, self.classes).movedim(-1, 1).float()
        return F.interpolate(shown_BKHW, size=look.shape[1:])

    def data_problems(self, data: DataSpec) -> list[str]:
        """A column that is missing, or has more than one channel; values that do not fit 8 bits."""
        found = data.columns.get(self.column)
        if found is None or found.kind != "image" or found.shape[0] != 1:
            has = ", ".join(data.columns)
            return [
                (
                    f"model.adapter.column: the data has no map {self.column!r} of one channel, only {has}; "
                    "one in data.columns"
                )
            ]
        if (self.classes - 1) * self.step > 255:
            most = 255 // (self.classes - 1)
            return [f"model.adapter.step: {self.step} takes {self.classes} classes above 255; at most {most}"]
        return []

    @classmethod
    def tiny(cls) -> Self:
        """Three classes of the images themselves, with the attention trained."""
        return cls(column="image", classes=3, step=120, train=("*attn*",))


COMPONENT = SegmentationConfig
