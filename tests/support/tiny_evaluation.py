"""What the tests of evaluation share: quick settings, and model folders of untrained networks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sfumato.core.batch import DataSpec
from sfumato.core.family import FamilyConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.evaluation.blocks.workers import InProcess
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.references.features import ReferenceFeatures
from sfumato.evaluation.references.reference import Reference
from sfumato.sampling.model_folder import save_model_folder

CLASSIFIER = {"classifier": {"seen": 6000, "base": 8, "dim": 16}}
"""Options of the smallest feature classifier that is worth measuring with."""


def settings(**fields: Any) -> EvaluateSettings:
    """Settings of an evaluation in this process, with `fields` laid over them."""
    return EvaluateSettings(**{"actors": 0, "feature_options": CLASSIFIER} | fields)


def untrained(
    folder: Path, config: FamilyConfig, spec: DataSpec, *, name: str = "tiny", images: int = 0
) -> Path:
    """A model folder whose networks were never trained: it makes images of the right kind."""
    family = config.build(spec)
    states = {}
    for part in family.samplers:
        source = getattr(family.nets[part], "source", part)
        with seeded(0, "init", source):
            states[part] = family.nets[source].build().state_dict()  # type: ignore[union-attr]
    save_model_folder(folder, config, spec, states, name=name, progress=Progress.at(images))
    return folder


def reference_features(reference: Reference, extractor: Extractor, cache: FeatureCache | Path) -> FeatureSet:
    """Features of a whole set, from the cache or made in this process."""
    cache = cache if isinstance(cache, FeatureCache) else FeatureCache(cache)
    with tempfile.TemporaryDirectory() as blocks:
        return ReferenceFeatures(cache, Path(blocks), InProcess()).of(reference, [extractor])[extractor.name]
