"""DDIM inversion: the noise from which a deterministic sampler draws the image, and the image drawn again
from it (Song, Meng, Ermon 2021, sec. 4.3).

A step back from x' to x solves for the x whose own step leads to x', by fixed-point iteration (Garibi et al.
2024, ReNoise, sec. 3, without its noise correction). Where the image prevails, a > s, what is iterated is the
noise, elsewhere the image, since that changes little:

    x = a / a' (x' - s' eps(x)) + s eps(x)   or   x = a x_0(x) + s / s' (x' - a' x_0(x))
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.core.paths import Path
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
        return path.decode(there_and_back(path, path.encode(block.images), first, self.refine))


def there_and_back(path: Path, x: Tensor, first: int, refine: int) -> Tensor:
    """x_0 drawn again from the point at level `first` that leads to x_0."""
    for at in range(path.steps - 1, first - 1, -1):
        x = _back(path, x, at, refine)
    for at in range(first, path.steps):
        x = _ahead(path, x, at)
    return x


def _ahead(path: Path, x: Tensor, at: int) -> Tensor:
    """The deterministic step to the next level."""
    (a, s, _), (a_next, s_next, _) = path.levels[at], path.levels[at + 1]
    image = path.image(x, at)
    eps = (x - a * image) / s
    return a_next * image + s_next * eps


def _back(path: Path, x: Tensor, at: int, times: int) -> Tensor:
    """The point at level `at` whose step leads to x."""
    (a, s, _), (a_next, s_next, _) = path.levels[at], path.levels[at + 1]
    found = x
    for _ in range(times):
        image = path.image(found, at)
        if s > a and s_next:
            found = a * image + s / s_next * (x - a_next * image)
        else:
            eps = (found - a * image) / s
            found = a / a_next * (x - s_next * eps) + s * eps
    return found


COMPONENT = Invert
