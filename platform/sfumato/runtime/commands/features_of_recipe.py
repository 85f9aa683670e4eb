"""Features of images for `sfumato precompute`: by the extractor that a recipe's evaluation uses.

The image half of a contrastive pair, of CLIP or of DINOv2 gives each image a vector, which models can be
conditioned on (`families/diffusion/adapters/embedding.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sfumato import recipe as recipes
from sfumato.core.validation import first_problem
from sfumato.data.format.columns import ColumnInfo, EncoderInfo
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError
from sfumato.evaluation.features import all_features
from sfumato.evaluation.features.extractor import Extractor, built
from sfumato.evaluation.references.reference import PackedReference
from sfumato.runtime.commands.evaluate import CACHE

COLUMN = "features"


@dataclass(frozen=True, slots=True)
class Features:
    """An extractor, which travels to the actors."""

    extractor: Extractor

    def info(self, named: str, manifest: Manifest) -> EncoderInfo:
        """The manifest entry of the encoded set."""
        return EncoderInfo(
            run=named,
            digest=hashlib.sha256(self.extractor.digest.encode()).hexdigest(),
            family=self.extractor.name,
            images=manifest.digest,
            transform="features of images",
        )

    def columns(self) -> dict[str, ColumnInfo]:
        """One vector for each image."""
        shape = (self.extractor.dim,)
        return {COLUMN: ColumnInfo(kind="vector", dtype="float32", shape=shape, stored="side")}


def look_up(target: str, data: str, root: Path) -> Features:
    """The extractor that a recipe names in `evaluate.features`, built for this data set: a contrastive pair
    is trained on it, or taken from the cache.

    Raises ConfigError, in one line, for a recipe that names none or several, or one that cannot be had.
    """
    recipe = recipes.load(target)
    settings = recipe.evaluate
    names = [settings.features] if isinstance(settings.features, str) else list(settings.features)
    if len(names) != 1 or names[0] not in all_features():
        known = ", ".join(sorted(all_features()))
        raise ConfigError(
            f"--arrays features: evaluate.features of {target} is {', '.join(names)}; name one of {known}"
        )
    kind, reference = all_features()[names[0]], PackedReference(data)
    if problems := kind.problems(reference.spec):
        raise ConfigError(*problems)
    try:
        options = kind.options.model_validate(settings.feature_options.get(names[0], {}))
    except ValidationError as error:
        raise ConfigError(f"evaluate.feature_options.{names[0]}: {first_problem(error)}") from None
    place = settings.cache or root / recipe.storage / CACHE
    return Features(built(kind, reference, options, Path(place)))


class FeatureEncoder:
    """A `ShardEncoder`."""

    def __init__(self, features: Features, columns: Mapping[str, ColumnInfo]) -> None:
        self.columns = columns
        self._extractor = features.extractor

    def encode(
        self, image_NHWC: NDArray[np.uint8], captions: Sequence[str | None]
    ) -> Mapping[str, NDArray[Any]]:
        """The vectors; captions are ignored."""
        (name,) = self.columns
        return {name: self._extractor.extract(image_NHWC).embedding_ND}
