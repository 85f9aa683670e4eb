"""Lets, before a run starts, the parts of its model that learn from the whole data set do so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sfumato.core.from_data import FromData
from sfumato.core.pretrained import replaced
from sfumato.data.columns import carried, spec_of
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading.column_values import texts_of
from sfumato.recipe import Recipe


class Packed:
    """The data set of a recipe, as `core.from_data.DataSet`."""

    def __init__(self, recipe: Recipe, manifest: Manifest) -> None:
        self._settings, self._manifest = recipe.data, manifest

    def values(self, column: str) -> Iterator[Any]:
        return texts_of(self._settings.path, self._manifest, column)

    def encoder(self, column: str) -> str | None:
        info = carried(self._settings, self._manifest).get(column)
        encoder = None if info is None else self._manifest.encoders.get(info.encoder or "")
        return None if encoder is None else encoder.digest


def learnt(recipe: Recipe, manifest: Manifest, note: Callable[[str], None]) -> Recipe:
    """The recipe with all that its model learns from the data; `note` shows a line.

    It stays as it is if its model cannot be built for this data, which is reported later. Raises ConfigError.
    """
    if recipe.model.problems(spec_of(recipe.data, manifest)):
        return recipe
    data = Packed(recipe, manifest)
    model = replaced(recipe.model, "model", lambda _, part: part.learnt(data, note), FromData)
    return recipe if model is recipe.model else recipe.model_copy(update={"model": model})
