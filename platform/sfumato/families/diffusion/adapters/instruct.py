"""InstructPix2Pix (Brooks et al. 2023, sec. 3.2): the picture before an edit enters beside the noisy one, and
the text says what is to be done to it.

Two weights guide (eq. 3): `guidance` towards the instruction, `image_guidance` towards the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.families.diffusion.adapters import Look
from sfumato.families.diffusion.adapting.concatenation import ConcatenatingConfig

BEFORE = "before"


class InstructConfig(ConcatenatingConfig):
    """Edits by instruction."""

    of_texts: ClassVar[bool] = True
    pipeline: ClassVar[str] = "StableDiffusionInstructPix2PixPipeline"
    kind: Literal["instruct"] = Field("instruct", description="Selects edits by instruction.")
    column: str = Field(
        "before", description="The column that holds the picture before the edit; `image` is the one after."
    )
    dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of pictures that are dropped alone; half of the dropped texts lose theirs too.",
    )

    def further(self, channels: int) -> int:
        """Those of the picture, or of its latents."""
        return channels

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The picture, required."""
        column = data.columns.get(self.column)
        shape = data.shape if column is None else tuple(column.shape)
        return (Condition(BEFORE, self.column, "image", shape=shape, required=True),)

    def shown(self, rows: Mapping[str, Any], look: Look) -> Tensor:
        """The picture where the model works."""
        return look.encode(rows[self.column])

    def data_problems(self, data: DataSpec) -> list[str]:
        """No such column of images."""
        return self.image_problems(self.column, data)

    def scale_of(self, pipeline: Any) -> float:
        """The stock pipeline does not scale the latents of the picture."""
        return float(pipeline.vae.config.scaling_factor)

    @classmethod
    def tiny(cls) -> Self:
        """Of the images themselves, with the attention trained."""
        return cls(column="image", train=("*attn*",))


COMPONENT = InstructConfig
