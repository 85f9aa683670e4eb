"""What an evaluation found, as an object and as `report.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sfumato.errors import SfumatoError
from sfumato.evaluation.metrics.metric import MetricResult
from sfumato.evaluation.store import write_json

FILE = "report.json"


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The numbers, what explains them, and what they were computed from.

    `metrics` by name; `details` of each metric, `features` of each extractor (digest, dimension, held-out
    accuracy of the classifier ...) as plain JSON values; `higher_is_better` by metric. `seconds` is the
    wall time of this evaluation, `seconds_per_image` the time in which one worker generates one image.
    """

    metrics: Mapping[str, float]
    details: Mapping[str, Mapping[str, object]]
    features: Mapping[str, Mapping[str, object]]
    higher_is_better: Mapping[str, bool]
    samples: int
    reference_samples: int
    reference_digest: str
    seed: int
    seconds: float
    seconds_per_image: float
    preview: str | None
    """File name of the grid of samples, beside the report."""

    def write(self, folder: Path) -> Path:
        """Writes `report.json` into `folder`, whole or not at all, and returns its path."""
        write_json(folder / FILE, asdict(self))
        return folder / FILE


def finite(result: MetricResult) -> MetricResult:
    """The result. Raises SfumatoError for a number that is none, which would poison every comparison."""
    if not math.isfinite(result.value):
        raise SfumatoError(f"metric {result.name} came out as {result.value}: the samples are degenerate")
    return result
