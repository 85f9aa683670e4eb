"""Mode collapse in three figures: classes covered, divergence of their histogram, distance between samples.

- `classes_covered`: the share of the reference's classes in which a classifier sees samples, each at least a
  tenth as often as among the real images (Metz et al. 2017, sec. 3.3.1, counts modes with a sample or more,
  which a stray misjudged one fulfils).
- `class_kl`: KL(samples || real images) of the histograms of predicted classes, in nats (ibid.). Both
  histograms are the classifier's, so that its mistakes fall on both. A class that it never sees among the
  real images counts there as half an image.
- `pair_distance`: mean Euclidean distance of two different feature vectors in random batches of 64 samples or
  more, over that of the real images: 1 for a perfect model, 0 where all samples are one.

A model that repeats one good image has precision 1, and all three figures tell it. Samples of a conditional
model were asked for by class: for them the first two say whether it heeds the classes, and the third is the
one to watch.
"""

from __future__ import annotations

import numpy as np

from sfumato.core.batch import DataSpec
from sfumato.errors import DataError
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float32Array, Float64Array, Int64Array

BATCH = 64
LEAST_SHARE = 0.1
"""Of the share of a class among real images, below which it does not count as covered."""


def histogram(features: FeatureSet, name: str) -> Int64Array:
    """Images by predicted class [K]. Raises DataError for features that do not classify."""
    if features.logits_NK is None:
        raise DataError(f"{name} needs features that classify, got no logits")
    classes = features.logits_NK.shape[1]
    counts_K: Int64Array = np.bincount(features.logits_NK.argmax(axis=1), minlength=classes)
    return counts_K


def covered(sample_K: Int64Array, real_K: Int64Array) -> list[int]:
    """The classes with real images that the samples cover."""
    share_K, real_share_K = sample_K / sample_K.sum(), real_K / real_K.sum()
    return np.flatnonzero((real_K > 0) & (share_K >= LEAST_SHARE * real_share_K)).tolist()


def divergence(sample_K: Int64Array, real_K: Int64Array) -> float:
    """KL of the histograms of samples and real images, nats, 0 and up."""
    p_K = sample_K / sample_K.sum()
    q_K = np.where((real_K == 0) & (sample_K > 0), 0.5, real_K)
    q_K = q_K / q_K.sum()
    seen_K = p_K > 0
    return float(max(0.0, np.sum(p_K[seen_K] * np.log(p_K[seen_K] / q_K[seen_K]))))


def distances(embedding_ND: Float32Array) -> Float64Array:
    """Mean distance of two different rows, of each batch of about 64 rows.

    Batches are random, by a fixed seed: samples may come class by class.
    """
    order_N = np.random.default_rng(0).permutation(len(embedding_ND))
    parts = np.array_split(order_N, max(1, len(order_N) // BATCH))
    return np.array([_mean_distance(embedding_ND[rows_B].astype(np.float64)) for rows_B in parts])


def _mean_distance(x_BD: Float64Array) -> float:
    from scipy.spatial.distance import pdist  # here: reading a recipe imports this module

    return float(pdist(x_BD).mean())


class ClassesCovered(BaseMetric):
    """In [0, 1], higher is better; see the top of the file."""

    name = "classes_covered"
    higher_is_better = True
    needs_logits = True

    def problems(self, data: DataSpec) -> list[str]:
        if data.num_classes >= 2:
            return []
        got = f"this data has {data.num_classes}"
        return [f"{self.name} needs 2 or more classes, {got}: leave it out of evaluate.metrics"]

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        sample_K, real_K = histogram(generated, self.name), histogram(reference, self.name)
        found, there = covered(sample_K, real_K), np.flatnonzero(real_K).tolist()
        details = {"missing": sorted(set(there) - set(found)), "samples_by_class": sample_K.tolist()}
        return MetricResult(self.name, len(found) / len(there), details)


class ClassDivergence(ClassesCovered):
    """In nats, 0 and up, lower is better; see the top of the file."""

    name = "class_kl"
    higher_is_better = False

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        sample_K, real_K = histogram(generated, self.name), histogram(reference, self.name)
        return MetricResult(self.name, divergence(sample_K, real_K))


class PairDistance(BaseMetric):
    """0 and up, 1 is a perfect model's; see the top of the file."""

    name = "pair_distance"
    higher_is_better = True

    def least_samples(self, options: MetricOptions) -> int:
        """A pair."""
        return 2

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        real = float(reference.derived(("pair_distance",), lambda: distances(reference.embedding_ND)).mean())
        made = float(distances(generated.embedding_ND).mean())
        if real == 0:
            raise DataError("pair_distance: all real images have the same features")
        return MetricResult(self.name, made / real, {"samples": made, "real_images": real})


METRICS: tuple[Metric, ...] = (ClassesCovered(), ClassDivergence(), PairDistance())
