"""An evaluation as one object: what is measured against what, with which settings, and where its files go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.metric_inputs import Prepared
from sfumato.evaluation.progress import SAMPLES, ProgressCallback, untold
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.selected import Selection
from sfumato.evaluation.subjects.image_source import ImageSource
from sfumato.evaluation.subjects.model_sources import load_model
from sfumato.evaluation.subjects.source import LoadSource, SampleSource


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that decides an evaluation, and where its results go.

    `load` builds the measured source from `model_folder` and the sampling options, on the driver and
    in every worker. `out` gets `report.json`, pictures and the blocks' features; `cache` trained classifiers
    and features of references. `blocks` is the folder of finished blocks; None: `out`.

    `progress` is told (done, in all), of samples alone unless `phase` is given, which is called with the name
    of each part of the work as it begins.
    """

    settings: EvaluateSettings
    load: LoadSource
    model_folder: Path
    reference: Reference
    out: Path
    cache: Path
    progress: ProgressCallback | None = None
    blocks: Path | None = None
    phase: Callable[[str], None] | None = None

    @classmethod
    def of_model(
        cls,
        settings: EvaluateSettings,
        *,
        model_folder: Path,
        reference: Reference,
        out: Path,
        cache: Path,
        progress: ProgressCallback | None = None,
        blocks: Path | None = None,
        phase: Callable[[str], None] | None = None,
        trust: bool = False,
        base: Path | None = None,
    ) -> Self:
        """Of a trained model; one that cannot draw images reconstructs those of the reference.

        `trust` permits a family by import path; `base` is the place of an adapter's base, None for its place
        in training.
        """
        device = "cuda" if settings.gpus_per_actor else "cpu"
        load = partial(load_model, device=device, trust=trust, reference=reference, base=base)
        return cls(settings, load, model_folder, reference, out, cache, progress, blocks, phase)

    @classmethod
    def of_images(
        cls,
        settings: EvaluateSettings,
        *,
        images: Reference,
        reference: Reference,
        out: Path,
        cache: Path,
        progress: ProgressCallback | None = None,
        phase: Callable[[str], None] | None = None,
    ) -> Self:
        """Of existing images, such as another program's samples; the first `settings.samples` count."""
        load = partial(_images, images=images)
        return cls(settings, load, out, reference, out, cache, progress, phase=phase)

    @property
    def features(self) -> FeatureCache:
        """Where features of references are kept."""
        return FeatureCache(self.settings.cache or self.cache)

    @property
    def blocks_folder(self) -> Path:
        """Where finished blocks are kept."""
        return self.blocks or self.out

    def source(self) -> SampleSource:
        """The measured source. Raises CheckpointError, ConfigError or CapabilityError, as `load_model`."""
        return self.load(self.model_folder, self.settings.sampling)

    def begin(self, part: str) -> ProgressCallback:
        """A part of the work begins; what this returns is told how far it is."""
        if self.phase is not None:
            self.phase(part)
        heard = self.phase is not None or part == SAMPLES
        return self.progress if self.progress and heard else untold

    def for_workers(self) -> Evaluation:
        """Without the parts that stay on the driver."""
        return replace(self, progress=None, phase=None)


@dataclass(frozen=True, slots=True)
class Opened:
    """A running evaluation: its settings, resolved for the source and the reference at hand."""

    evaluation: Evaluation
    source: SampleSource
    selection: Selection
    extractors: Sequence[Extractor]
    real: Mapping[str, FeatureSet]
    """Features of the reference, by the features' name."""
    inputs: Mapping[str, Prepared]
    """Metrics' inputs other than features, by the input's name."""


def _images(folder: Path, sampling: Mapping[str, Any], *, images: Reference) -> SampleSource:
    return ImageSource(images)
