"""Classification accuracy score (Ravuri & Vinyals 2019): trained on samples, tested on real images.

It falls when samples of a class look wrong, and also when they lack the class's variety, which class
accuracy cannot see. The classifier is a small network of its own (`score_network.py`), not the ResNet-50 of
the paper: the figures compare only models of one data set at equal settings.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.rng import seeded
from sfumato.errors import DataError
from sfumato.evaluation.features.extractor import one_thread
from sfumato.evaluation.features.pixels import scale
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.score_network import ScoreNetwork, train
from sfumato.evaluation.statistics import Int64Array, UInt8Array

LEAST_PER_CLASS = 10
BATCH = 64
RATE = 3e-3
CHANNELS = 32
FEATURES = 64
NO_INTERVAL = "other samples would train another classifier: compare several seeds"


class ClassificationScoreSettings(Config):
    """How long to train its classifier."""

    cas_seen: int = Field(
        40_000, gt=0, description="classification_score: samples that its classifier sees, repeats counted."
    )


def classification_hits(
    generated_NHWC: UInt8Array, asked_N: Int64Array, real: FeatureSet, *, seen: int, seed: int
) -> np.typing.NDArray[np.bool_]:
    """Which of the real images [M] a classifier of the samples gets right; deterministic."""
    assert real.images is not None
    assert real.label_N is not None
    classes = int(max(asked_N.max(), real.label_N.max())) + 1
    images_NCHW = _channels_first(generated_NHWC)
    channels, height, width = images_NCHW.shape[1:]
    with one_thread():
        with seeded(seed, "classification-score-weights"):
            network = ScoreNetwork(channels, height, width, classes, base=CHANNELS, dim=FEATURES)
        train(network, images_NCHW, torch.from_numpy(asked_N), seen=seen, batch=BATCH, lr=RATE, seed=seed)
        with torch.inference_mode():
            seen_as = [
                network(scale(_channels_first(block[start : start + BATCH])))[1].argmax(1)
                for block in real.images()
                for start in range(0, len(block), BATCH)
            ]
    hits: np.typing.NDArray[np.bool_] = torch.cat(seen_as).numpy() == real.label_N
    return hits


def _channels_first(images_NHWC: UInt8Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2)


class ClassificationScore(BaseMetric):
    """Share of the real images that a classifier trained on the samples gets right; higher is better."""

    Settings = ClassificationScoreSettings
    name = "classification_score"
    higher_is_better = True
    needs_labels = True
    needs_images = True

    def least_samples(self, options: MetricOptions) -> int:
        """Two classes' worth; `compute` refuses fewer of any class."""
        return 2 * LEAST_PER_CLASS

    def problems(self, data: DataSpec) -> list[str]:
        """It needs classes."""
        if data.num_classes >= 2:
            return []
        got = f"this data has {data.num_classes}"
        return [f"{self.name} needs 2 or more classes, {got}: leave it out of evaluate.metrics"]

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        if generated.label_N is None or reference.label_N is None:
            raise DataError(
                f"{self.name} needs labelled reference images and a class-conditional model: leave it out of "
                "evaluate.metrics"
            )
        if generated.images is None or reference.images is None:
            raise DataError(f"{self.name} needs the images themselves, and they were not kept")
        label_K, count_K = np.unique(generated.label_N, return_counts=True)
        if count_K.min() < LEAST_PER_CLASS:
            raise DataError(
                f"{self.name} needs {LEAST_PER_CLASS} samples of a class or more, class "
                f"{label_K[count_K.argmin()]} has {count_K.min()}: raise evaluate.samples"
            )
        settings = options.of(ClassificationScoreSettings)
        images_NHWC = np.concatenate(list(generated.images()))
        hit_M = classification_hits(
            images_NHWC, generated.label_N, reference, seen=settings.cas_seen, seed=options.settings.seed
        )
        details = {
            "per_class": {
                str(label): float(hit_M[reference.label_N == label].mean())
                for label in np.unique(reference.label_N).tolist()
            },
            "seen": settings.cas_seen,
        }
        return MetricResult(self.name, float(hit_M.mean()), details, no_interval=NO_INTERVAL)


METRICS: tuple[Metric, ...] = (ClassificationScore(),)
