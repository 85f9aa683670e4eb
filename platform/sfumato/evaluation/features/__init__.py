"""One file a feature extractor. To add one, add a file that lists its kinds in `FEATURES`; no more.

Extractors outside of the folder are named by import path, `package.module:MyFeatures`.
"""

from __future__ import annotations

from functools import cache

from sfumato.core.finding import Members
from sfumato.evaluation.features.extractor import FeatureKind

_FEATURES: Members[FeatureKind] = Members("sfumato.evaluation.features", "FEATURES")


@cache
def all_features() -> dict[str, FeatureKind]:
    """Every kind of features by name."""
    return _FEATURES.all()


@cache
def own_features(path: str) -> FeatureKind:
    """The kind of features of an import path. Raises ConfigError for what is none."""
    return _FEATURES.imported(path, ("build",))
