"""The result of an evaluation, as an object and as `report.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError
from sfumato.evaluation.decisions.weakness import Marks, fit
from sfumato.evaluation.metrics.metric import MetricResult
from sfumato.evaluation.store import write_json

FILE = "report.json"
BITS, BITS_ON_TRAINING = "bits_per_dim", "train_bits_per_dim"
WEAK = "sfumato.weak_figures"
"""Tag of a run with the names of its marked figures."""
TERMS = "terms.safetensors"
"""File next to the report with the terms of every metric that is a mean; comparisons pair them."""
DEVIATIONS = "deviations/"
"""Prefix there of what each sample or group adds to a figure that is no mean."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The numbers, their explanation, and what they were computed from.

    `metrics` by name; `intervals` if there is one (`low`, `high`, `stderr`, `confidence`, `method`);
    `details` of each metric, `features` of each extractor (digest, dimension, held-out accuracy of the
    classifier ...) as plain JSON values; `higher_is_better` by metric. `seconds` is the wall time of this
    evaluation, `seconds_per_image` the time in which one worker makes one image, `evaluations_per_image`
    how often an image passes through a network on the way (0: not known).
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
    """File name of the grid of samples, next to the report."""
    intervals: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    kind: str = "samples"
    """samples | reconstructions | images: what was measured."""
    resized: str = ""
    """How images were resized to the reference's size; empty if they were not."""
    evaluations_per_image: float = 0.0
    neighbours: str | None = None
    """File name of the picture of samples above their nearest reference images."""
    computed_on: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """The metric and the features behind a figure that is computed on features, by the figure's name."""
    source_digest: str = ""
    labels_digest: str = ""
    """Equal in two reports whose sample i was requested with the same class, or both with none."""
    blocks: str = ""
    """Name of the folder of features, next to the report, as long as it is kept."""
    model: str = ""
    """Digest of the model that drew the samples; empty for other images."""
    sampling: Mapping[str, object] = field(default_factory=dict)
    """The sampling options that they were drawn with."""
    marks: Marks = field(default_factory=dict)
    """Why a figure says little, by the figure's name."""
    accept_weak_features: bool = False
    """Whether marked figures may decide, as the evaluation's settings say."""

    @property
    def fit(self) -> dict[str, float]:
        """The figures that may decide: which run or checkpoint is best, whether a gate opens."""
        return fit(self.metrics, self.marks, accepted=self.accept_weak_features)

    def tags(self) -> dict[str, str]:
        """The features behind every figure on features: name, resize, digest, marks. Other features give
        another figure under the same name. And the names of weak figures."""
        found = {}
        for figure, (_, features) in self.computed_on.items():
            facts = self.features[features]
            transform = facts.get("resize") or facts.get("transform")
            how = f", resize {transform}" if transform else ""
            images = f", images {self.resized}" if self.resized else ""
            weak = "".join(f", weak: {mark}" for mark in self.marks.get(figure, ()))
            found[f"sfumato.eval.{figure}"] = f"{features}{how}{images}, {facts['digest']}{weak}"
        # Always there: a tag that an earlier evaluation of the run has written would stay.
        return found | {WEAK: ", ".join(self.marks) or "none"}

    def write(self, folder: Path) -> Path:
        """Writes `report.json` into `folder`, whole or not at all, and returns its path."""
        write_json(folder / FILE, asdict(self))
        return folder / FILE


def read_report(folder: Path) -> EvaluationReport:
    """The report in a folder. Raises SfumatoError if it is missing or cannot be read."""
    path = folder / FILE
    try:
        content: dict[str, Any] = _renamed(json.loads(path.read_text()), folder)
        known = {item.name for item in fields(EvaluationReport)}
        return EvaluationReport(**{name: value for name, value in content.items() if name in known})
    except FileNotFoundError:
        raise SfumatoError(f"no {FILE} in {folder}: evaluate first") from None
    except (ValueError, TypeError) as error:
        raise SfumatoError(f"{path} cannot be read ({error}): evaluate again") from None


def _renamed(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Version 0.1 called bits per dimension of training images as it called all others."""
    details = content["details"].get(BITS, {})
    if BITS not in content["metrics"] or "on" in details or not _of_training(content, folder):
        return content
    parts = ("metrics", "details", "intervals", "higher_is_better")
    names = {BITS: BITS_ON_TRAINING}
    renamed = {part: {names.get(key, key): value for key, value in content[part].items()} for part in parts}
    renamed["details"][BITS_ON_TRAINING] = {**details, "on": "training images"}
    return {**content, **renamed}


def _of_training(content: Mapping[str, Any], folder: Path) -> bool:
    """Whether the reference is what the run around the folder was trained on."""
    for around in (folder.resolve().parent, *folder.resolve().parent.parents[:1]):
        card = around / "model" / "config.json"
        if card.is_file():
            return bool(json.loads(card.read_text()).get("trained_on") == content["reference_digest"])
    return False


def finite(result: MetricResult) -> MetricResult:
    """The result. Raises SfumatoError for a value that is not finite, which would poison comparisons."""
    if not math.isfinite(result.value):
        raise SfumatoError(f"metric {result.name} came out as {result.value}: the samples are degenerate")
    return result
