"""The text encoder of a recipe's model for `sfumato precompute`: the states that training would compute.

The columns have the names of the model's inputs (`text.condition`), so that training finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.core.pretrained import references
from sfumato.data.format.columns import ColumnInfo, EncoderInfo
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.sampling.pretrained_files import cast_parameters, load_stored
from sfumato.text.config import TextConfig, named
from sfumato.text.encoders import TextEncoderConfig
from sfumato.text.states import States


@dataclass(frozen=True, slots=True)
class RecipeText:
    """One frozen text encoder of a recipe's model, and its name there."""

    name: str
    config: TextEncoderConfig

    def info(self, named_as: str, manifest: Manifest) -> EncoderInfo:
        """The manifest entry of the encoded set. Raises ConfigError if there are no captions."""
        if not manifest.captions:
            raise ConfigError(
                f"--arrays text: no sample of {manifest.name} has a caption; pack them with captions"
            )
        return EncoderInfo(
            run=named_as,
            digest=self.config.content(),
            family=self.config.kind,
            images=manifest.digest,
            transform=f"captions of {self.config.shape().tokens} tokens",
        )

    def columns(self, dtype: str) -> dict[str, ColumnInfo]:
        """States and pooled states of this type, and the mask."""
        shape = self.config.shape()
        shapes = ((shape.tokens, shape.width), (shape.tokens,), (shape.pooled,))
        return {
            f"{self.name}_{part}": ColumnInfo(
                kind="array", dtype="bool" if part == "mask" else dtype, shape=sides, stored="side"
            )
            for part, sides in zip(States._fields, shapes, strict=True)
        }


def of_recipe(recipe: Recipe, name: str | None, target: str) -> RecipeText:
    """The frozen text encoder of this name in a resolved recipe; without a name, the only one.

    Raises ConfigError, in one line, if there is none, or are several.
    """
    encoders: dict[str, TextEncoderConfig] = {}
    for _, text in references(recipe.model, "model", TextConfig):
        encoders |= {key: found for key, found in named(text.encoders).items() if not found.trained}
    if not encoders:
        raise ConfigError(f"{target}: its model has no frozen text encoder")
    if name is None and len(encoders) > 1:
        raise ConfigError(
            f"{target}: its model has several text encoders; --name one of {', '.join(encoders)}"
        )
    chosen = name or next(iter(encoders))
    if chosen not in encoders:
        raise ConfigError(f"--name: its model has no text encoder {chosen!r}, only {', '.join(encoders)}")
    if problems := encoders[chosen].problems():
        raise ConfigError(*problems)
    return RecipeText(chosen, encoders[chosen].learnt(lambda: ()))


class RecipeTextEncoder:
    """A `ShardEncoder`: for every caption what the model's encoder returns."""

    def __init__(self, model: RecipeText, columns: Mapping[str, ColumnInfo], device: str = "cpu") -> None:
        frozen = model.config.frozen()
        self.columns = columns
        self._config, self._device = model.config, device
        self._network = frozen.build()
        if frozen.weights is not None:
            load_stored(self._network, frozen.weights)
        cast_parameters(self._network, frozen.dtype)
        self._network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(
        self, image_NHWC: NDArray[np.uint8], captions: Sequence[str | None]
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays of `columns`; images are ignored, and a missing caption counts as an empty one."""
        tokens = self._config.tokenize([caption or "" for caption in captions], self._network)
        states = self._network(*(part.to(self._device) for part in tokens))
        return {name: part.cpu().numpy() for name, part in zip(self.columns, states, strict=True)}
