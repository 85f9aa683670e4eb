"""One file per feature extractor. To add one, add a file that lists its kinds in `FEATURES`.

Extractors outside this folder are named by import path, `package.module:MyFeatures`.
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
    """The kind of features at an import path. Raises ConfigError if it is not one."""
    return _FEATURES.imported(path, ("build",))
