"""DDIM inversion: the noise from which a deterministic sampler draws the image, and the image drawn again
from it (`core/inversion.py`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.core.inversion import followed, inverted
from sfumato.editing.operations import Block, Operation, path_of, path_problems
from sfumato.sampling.generator import Generator


class Invert(Operation):
    """To noise and back."""

    kind: Literal["invert"] = Field("invert", description="Selects DDIM inversion and the way back.")
    strength: float = Field(
        1.0, ge=0, le=1, description="Share of the way to noise that is gone; less keeps more of the layout."
    )
    refine: int = Field(3, ge=1, description="Iterations of each step back; 1 is plain DDIM inversion.")

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model without a path; guidance, with which the way back is not the way there."""
        found = path_problems(model)
        guidance = getattr(options, "guidance", 1.0)
        if not found and guidance != 1:
            found.append(f"--guidance: {guidance:g}, but images are inverted without; set --guidance 1")
        return found

    def options(self, model: Generator, options: Config) -> Config:
        """Without clipping, which would lose what inversion has to find again."""
        names = type(options).model_fields
        return options.model_copy(update={"clip": False}) if "clip" in names else options

    def edited(self, model: Generator, block: Block) -> Tensor:
        """The images drawn again from their noise."""
        path = path_of(model, block)
        first = round(path.steps * (1 - self.strength))
        if first == path.steps:
            return block.images
        noise = inverted(path, path.encode(block.images), first, self.refine)
        return path.decode(followed(path, noise, first))


COMPONENT = Invert
