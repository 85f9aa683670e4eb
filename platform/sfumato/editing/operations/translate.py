"""Image-to-image models applied to images: the picture is the model's own condition (Pix2Pix, CycleGAN)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from sfumato.core.conditions import Condition
from sfumato.core.config import Config
from sfumato.editing.operations import Block, Operation
from sfumato.errors import ConfigError
from sfumato.sampling.generator import Generator


class Translate(Operation):
    """What the model makes of the picture."""

    kind: Literal["translate"] = Field("translate", description="Selects the model's own translation.")

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model that takes no picture, or several."""
        return [] if len(_images(model)) == 1 else ["--by: translate needs a model that takes one picture"]

    def edited(self, model: Generator, block: Block) -> Tensor:
        """Samples of the model, with the pictures as its condition."""
        conditions = {**block.request.conditions, source(model).name: block.images}
        request = replace(block.request, conditions=conditions)
        return model.family.sample(model.nets, request, model.progress, block.rng)


def source(model: Generator) -> Condition:
    """The condition that is a picture. Raises ConfigError if the model takes none or several."""
    found = _images(model)
    if len(found) != 1:
        raise ConfigError("--by: translate needs a model that takes one picture")
    return found[0]


def _images(model: Generator) -> list[Condition]:
    return [condition for condition in model.conditions if condition.kind == "image"]


COMPONENT = Translate
