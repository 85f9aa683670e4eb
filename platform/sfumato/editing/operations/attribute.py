"""Attribute arithmetic (Radford et al. 2016, sec. 6.3.2; Larsen et al. 2016, sec. 4.2): images get more of
what tells two sets of pictures apart.

The direction is the mean vector of the pictures in the folder `more` less that of those in `less`. Vectors of
pictures are found by optimisation (`project`), as that of the edited image is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.rng import SampleRng
from sfumato.editing.operations import Block
from sfumato.editing.operations.project import Project, decoded
from sfumato.sampling.condition_files import ImageFiles
from sfumato.sampling.generator import Generator


class Attribute(Project):
    """More of what one set of pictures has and the other lacks."""

    kind: Literal["attribute"] = Field(  # type: ignore[assignment]
        "attribute", description="Selects arithmetic with the latent vectors of two sets of pictures."
    )
    more: str = Field(min_length=1, description="Folder of pictures that have the attribute.")
    less: str = Field(min_length=1, description="Folder of pictures that lack it.")
    amount: float = Field(1.0, description="How often the difference is added; negative takes it away.")

    def image_problems(self, model: Generator, shape: tuple[int, ...]) -> list[str]:
        """Folders without pictures, or with such of another size."""
        found = []
        for name in ("more", "less"):
            place = getattr(self, name)
            if not Path(place).exists():
                found.append(f"--set {name}: {place} is not there; name a folder of pictures")
            elif ImageFiles.at(f"--set {name}", [place]).shape != model.data.shape:
                ours = f"{model.data.width}x{model.data.height}"
                found.append(f"--set {name}: the pictures are not of the model's {ours}; resize them")
        return found

    def edited(self, model: Generator, block: Block) -> Tensor:
        """The images, moved."""
        way_D = self._mean(model, block, self.more) - self._mean(model, block, self.less)
        return decoded(model, block.request, self.found(model, block) + self.amount * way_D)

    def _mean(self, model: Generator, block: Block, place: str) -> Tensor:
        """Of the vectors of all pictures in a folder, the same for every block."""
        files = ImageFiles.at("--set", [place])
        sums = []
        for first in range(0, len(files), model.block):
            numbers = [min(first + row, len(files) - 1) for row in range(model.block)]
            images = files.read(numbers)
            assert isinstance(images, Tensor), "rows of images"
            rows = replace(block, images=images.to(block.images.device), rng=SampleRng(0, numbers))
            sums.append(self.found(model, rows)[: len(files) - first].sum(dim=0))
        return torch.stack(sums).sum(dim=0) / len(files)


COMPONENT = Attribute
