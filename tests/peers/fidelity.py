"""torch-fidelity as a reference for tests and benchmarks, without torchvision.

The package imports torchvision for data sets and networks that nothing here touches, and torchvision has to
match the build of torch exactly. Here an empty stand-in takes its place while torch-fidelity is imported;
whatever would use it fails.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Absent(ModuleType):
    """A module whose every attribute is a class that cannot be used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


NAMES = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
missing = [name for name in NAMES if name not in sys.modules]
sys.modules.update({name: _Absent(name) for name in missing})
for name in missing:
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, sys.modules[name])
try:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full, calculate_precision_recall_part
finally:
    for name in missing:
        del sys.modules[name]

__all__ = [
    "FeatureExtractorInceptionV3",
    "calculate_precision_recall_full",
    "calculate_precision_recall_part",
    "fid_features_to_statistics",
    "fid_statistics_to_metric",
    "interpolate_bilinear_2d_like_tensorflow1x",
    "isc_features_to_metric",
    "kid_features_to_metric",
]
