"""Memorisation: samples that are closer to a training image than images that are not copies.

The distance of a sample to its nearest training image alone says little: what counts as near depends on the
data. It is therefore compared with the distances of real images that are not copies: those of held-out
images to the training set if they are given, otherwise those of the training images to one another, leaving
each one out. A sample counts as copied when its distance is below the `memorisation_quantile` of these
(1 % by default, which is then the expected figure of a model that copies nothing).

The details name the closest pairs, for inspection, and the Mann-Whitney statistic of the two samples of
distances, standardised (Meehan et al. 2020, eq. 1: data-copying when far below 0).
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sfumato.core.config import Config
from sfumato.errors import DataError
from sfumato.evaluation.metric_inputs import HeldOut
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    Topic,
)
from sfumato.evaluation.neighbours.nearest import nearest_in
from sfumato.evaluation.neighbours.sets import nearest_reference, own_neighbours
from sfumato.evaluation.statistics import Float64Array

SHOWN = 16


class MemorisationSettings(Config):
    """When a sample counts as a copy."""

    memorisation_quantile: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="memorisation: a sample counts as copied when it is closer to a training image than all "
        "but this share of real images that are not copies.",
    )


def memorisation(
    training: FeatureSet,
    generated: FeatureSet,
    options: MetricOptions,
    held_out: FeatureSet | None = None,
) -> MetricResult:
    """The share of copied samples; `held_out` are real images that were not trained on.

    Raises DataError for fewer of them than the quantile needs.
    """
    near = nearest_reference(training, generated, options)
    distance_M = np.sqrt(near.squared_Nk[:, 0])
    real_N = _distances_of_no_copies(training, options, held_out)
    limit = float(np.quantile(real_N, options.of(MemorisationSettings).memorisation_quantile))
    copied_M = distance_M < limit
    closest = np.argsort(distance_M, kind="stable")[:SHOWN]
    details: dict[str, object] = {
        "quantile": options.of(MemorisationSettings).memorisation_quantile,
        "distance_limit": limit,
        "compared_with": "training images, each left out" if held_out is None else "held-out images",
        "median_distance": float(np.median(distance_M)),
        "median_distance_of_no_copies": float(np.median(real_N)),
        "mann_whitney_z": mann_whitney_z(distance_M, real_N),
        "closest_pairs": [
            {"sample": row, "training_image": int(near.index_Nk[row, 0]), "distance": float(distance_M[row])}
            for row in closest.tolist()
        ],
    }
    return MetricResult("memorisation", float(copied_M.mean()), details, copied_M.astype(np.float64))


def mann_whitney_z(a_N: Float64Array, b_M: Float64Array) -> float:
    """Standardised U statistic of `a` above `b`, ties at half: below 0 if `a` tends to be smaller."""
    from scipy import stats

    n, m = len(a_N), len(b_M)
    rank = stats.rankdata(np.concatenate([a_N, b_M]))
    above = float(rank[:n].sum()) - n * (n + 1) / 2
    return (above - n * m / 2) / float(np.sqrt(n * m * (n + m + 1) / 12))


def _distances_of_no_copies(
    training: FeatureSet, options: MetricOptions, held_out: FeatureSet | None
) -> Float64Array:
    if held_out is None:
        squared_N = own_neighbours(training, options).squared_Nk[:, 0]
    else:
        least = least_held_out(options)
        if len(held_out) < least:
            raise DataError(f"memorisation needs {least} held-out images or more, got {len(held_out)}")
        found = nearest_in(held_out.embedding_ND, training.embedding_ND, spread=options.spread)
        squared_N = found.squared_Nk[:, 0]
    distance_N: Float64Array = np.sqrt(squared_N)
    return distance_N


def least_held_out(options: MetricOptions) -> int:
    """Enough distances for their quantile to be one of them."""
    return int(np.ceil(1 / options.of(MemorisationSettings).memorisation_quantile))


class Memorisation(BaseMetric):
    """Share of copied samples, in [0, 1]; lower is better. The reference is taken for the training images."""

    Settings = MemorisationSettings
    name = "memorisation"
    topic: Topic = "memorisation"
    needs_images = True  # of the closest pairs, wherever they are
    inputs = (HeldOut(least_held_out),)

    def least_samples(self, options: MetricOptions) -> int:
        """Enough for the quantile to be one, and for a k-th neighbour."""
        return max(options.k + 1, least_held_out(options))

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        return memorisation(reference, generated, options, reference.held_out)


METRICS: tuple[Metric, ...] = (Memorisation(),)
