"""One file a feature extractor. To add one, add a file that lists its kinds in `FEATURES`; no more."""

from __future__ import annotations

import sys
from functools import cache

from sfumato.evaluation.features.extractor import FeatureKind
from sfumato.evaluation.registry import discover


@cache
def all_features() -> dict[str, FeatureKind]:
    """Every kind of features by name."""
    return discover(sys.modules[__name__], "FEATURES")
