"""Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1-2).

The manifold of a set is the union of balls around its vectors, each reaching to the vector's k-th nearest
neighbour in the same set, itself excluded. Precision is the share of the generated vectors inside the
reference's manifold, recall the share of the reference inside the generated one. A ball includes its surface.
(The `prdc` package excludes it, which differs when distances tie, for example on repeated images.)

With the reference fixed, a sample is inside its manifold or not whatever the other samples are: precision is
a mean of independent terms. Recall is not, because all its terms share the samples' manifold; its error comes
from random halves of the samples, each with a manifold of its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sfumato.core.seeds import derive
from sfumato.evaluation.intervals.standard_errors import StandardError, of_halves, random_halves
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.neighbours.sets import mutual
from sfumato.evaluation.neighbours.subsets import recall_of_subsets


class Precision(BaseMetric):
    """Share of the generated vectors inside the reference's manifold, in [0, 1]."""

    name = "precision"
    refuses_noise = True
    higher_is_better = True
    in_auto = True

    def least_samples(self, options: MetricOptions) -> int:
        """A k-th neighbour needs k + 1 vectors."""
        return options.k + 1

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        inside_M = mutual(reference, generated, options).balls_of_a_M > 0
        return _share(self.name, inside_M, options)


class Recall(Precision):
    """Share of the reference's vectors inside the generated manifold, in [0, 1]."""

    name = "recall"
    refuses_noise = False

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        inside_N = mutual(reference, generated, options).a_inside_N

        def error() -> StandardError | None:
            return _error_of_recall(reference, generated, options)

        return replace(_share(self.name, inside_N, options), terms_M=None, error=error)


def _share(name: str, inside: np.typing.NDArray[np.bool_], options: MetricOptions) -> MetricResult:
    details = {"inside": int(inside.sum()), "of": len(inside), "k": options.k}
    return MetricResult(name, float(inside.mean()), details, inside.astype(np.float64))


def _error_of_recall(
    reference: FeatureSet, generated: FeatureSet, options: MetricOptions
) -> StandardError | None:
    """None if a half would have no k-th neighbour."""
    if len(generated) // 2 <= options.k:
        return None
    rng = np.random.default_rng(derive(options.settings.seed, "halves of recall"))
    half_BM = random_halves(len(generated), rng, generated.label_N)
    recall_B = recall_of_subsets(
        reference.embedding_ND, generated.embedding_ND, half_BM, options.k, spread=options.spread
    )
    return of_halves(recall_B, low=0, high=1)


METRICS: tuple[Metric, ...] = (Precision(), Recall())
