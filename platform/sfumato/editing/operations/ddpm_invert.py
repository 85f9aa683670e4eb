"""Edit-friendly inversion (Huberman-Spiegelglas et al. 2024, alg. 1): the noise that an ancestral sampler
would have had to draw to make the image, found from points that are noised independently at every level.

With it and the same text the sampler makes the image again; with another text it makes an edit that keeps the
layout. The last step draws no noise; what it misses of the image is added to the edit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.core.batch import Texts
from sfumato.core.config import Config
from sfumato.core.paths import Path
from sfumato.editing.ancestral import mean_and_deviation
from sfumato.editing.operations import Block, Operation, noise_of, path_of, path_problems
from sfumato.sampling.generator import Generator

TEXT = "text"


class DdpmInvert(Operation):
    """Another text, the same noise."""

    kind: Literal["ddpm_invert"] = Field("ddpm_invert", description="Selects edit-friendly inversion.")
    source: str | None = Field(
        None, description="The text of the image as it is; without it, --prompt is both, and nothing changes."
    )
    strength: float = Field(
        0.65, ge=0, le=1, description="Share of the steps that run with the new text; more changes more."
    )

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model without a path; a text for a model of none."""
        found = path_problems(model)
        takes = any(condition.name == TEXT for condition in model.conditions)
        if not found and self.source is not None and not takes:
            found.append("--set source: this model takes no texts; leave it out")
        return found

    def edited(self, model: Generator, block: Block) -> Tensor:
        """The images with the noise of their own, and the new text."""
        target = path_of(model, block)
        first = round(target.steps * (1 - self.strength))
        if first == target.steps:
            return block.images
        origin = target
        if self.source is not None:
            texts = Texts([self.source] * block.request.num)
            request = replace(block.request, conditions={**block.request.conditions, TEXT: texts})
            origin = path_of(model, replace(block, request=request))
        return target.decode(remade(origin, target, origin.encode(block.images), first, block))


def remade(origin: Path, target: Path, x_0: Tensor, first: int, block: Block) -> Tensor:
    """x_0 as `target` makes it from level `first` on, with the noise by which `origin` makes `x_0`."""
    points = [origin.noised(x_0, at, noise_of(origin, block)) for at in range(first, origin.steps)]
    points.append(x_0)
    x = points[0]
    for number, at in enumerate(range(first, origin.steps)):
        mean, deviation = mean_and_deviation(origin, points[number], at)
        drawn = points[number + 1] - mean  # deviation * z; in the last step all that the image lacks
        x = mean_and_deviation(target, x, at)[0] + drawn
        if deviation == 0 and at + 1 < origin.steps:  # a path without noise there
            x = mean_and_deviation(target, x, at)[0]
    return x


COMPONENT = DdpmInvert
