"""The text encoder of a recipe's model for `sfumato precompute`: the states that training would compute.

The columns have the names of the model's inputs (`text.condition`), so that training finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray

from sfumato.core.pretrained import references
from sfumato.data.format.columns import TEXT, ColumnInfo, EncoderInfo
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.sampling.pretrained_files import cast_parameters, load_stored
from sfumato.text.config import TextConfig, content_of, named, prefixed
from sfumato.text.encoders import TextEncoderConfig
from sfumato.text.network import padded
from sfumato.text.states import States


@dataclass(frozen=True, slots=True)
class RecipeText:
    """One frozen text encoder of a recipe's model, its name there, and the texts that it sees."""

    name: str
    config: TextEncoderConfig
    column: str = TEXT
    prefix: str = ""

    def info(self, named_as: str, manifest: Manifest) -> EncoderInfo:
        """The manifest entry of the encoded set. Raises ConfigError if there are no captions."""
        if self.column not in manifest.columns and not (self.column == TEXT and manifest.captions):
            raise ConfigError(
                f"--arrays text: no sample of {manifest.name} has a caption in {self.column!r}; pack them "
                "with captions"
            )
        return EncoderInfo(
            run=named_as,
            digest=content_of(self.config, self.prefix),
            family=self.config.kind,
            images=manifest.digest,
            transform=f"captions of {self.config.shape().tokens} tokens",
        )

    def columns(self, dtype: str, manifest: Manifest) -> dict[str, ColumnInfo]:
        """States and pooled states of this type, and the mask: for every text of a sample, if it has several,
        and without padding, if the model sees zeros there.
        """
        shape = self.config.shape()
        shapes = ((shape.tokens, shape.width), (shape.tokens,), (shape.pooled,))
        several = self.column in manifest.columns or self.config.padding == "zero"
        return {
            f"{self.name}_{part}": ColumnInfo(
                kind="array",
                dtype="bool" if part == "mask" else dtype,
                shape=sides,
                stored="several" if several else "side",
                texts=self.column if several else None,
            )
            for part, sides in zip(States._fields, shapes, strict=True)
        }


def of_recipe(recipe: Recipe, name: str | None, target: str) -> list[RecipeText]:
    """The frozen text encoder of this name in a resolved recipe; without a name, all of them.

    Raises ConfigError, in one line, if there is none.
    """
    encoders: dict[str, RecipeText] = {}
    for _, text in references(recipe.model, "model", TextConfig):
        for key, config in named(text.encoders).items():
            if not config.trained:
                encoders[key] = RecipeText(key, config, text.column, text.prefix)
    if not encoders:
        raise ConfigError(f"{target}: its model has no frozen text encoder")
    if name is not None and name not in encoders:
        raise ConfigError(f"--name: its model has no text encoder {name!r}, only {', '.join(encoders)}")
    chosen = list(encoders.values()) if name is None else [encoders[name]]
    if problems := [problem for each in chosen for problem in each.config.problems()]:
        raise ConfigError(*problems)
    return [replace(each, config=each.config.learnt(lambda: ())) for each in chosen]


class RecipeTextEncoder:
    """A `TextsEncoder`: for every text what the model's encoder returns."""

    def __init__(self, model: RecipeText, columns: Mapping[str, ColumnInfo], device: str = "cpu") -> None:
        frozen = model.config.frozen()
        self.columns = columns
        self.text_column = model.column
        self._config, self._prefix, self._device = model.config, model.prefix, device
        self._network = frozen.build()
        if frozen.weights is not None:
            load_stored(self._network, frozen.weights)
        cast_parameters(self._network, frozen.dtype)
        self._network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """The arrays of `columns` for these texts; an empty one is that of no text."""
        tokens = self._config.tokenize([prefixed(text, self._prefix) for text in texts], self._network)
        states = padded(self._config, self._network(*(part.to(self._device) for part in tokens)))
        return {name: part.cpu().numpy() for name, part in zip(self.columns, states, strict=True)}
