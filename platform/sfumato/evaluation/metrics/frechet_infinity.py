"""Fréchet distance without the bias of a finite sample (Chong & Forsyth 2020: FID-infinity).

The distance of a finite sample is biased by about b / N, and b depends on the generator, so that a ranking
at one N may be wrong. The distance is computed on random subsets of growing size, and the line fitted to it
against 1 / N is read at 1 / N = 0.

The sizes are equally spaced in N, as in the authors' program. Departure from the paper: the samples are the
evaluation's own, not drawn by a Sobol sequence in the latent space. The reference stays finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from pydantic import Field

from sfumato.core.config import Config
from sfumato.evaluation.decisions.weakness import of_samples
from sfumato.evaluation.intervals.groups import dealt
from sfumato.evaluation.intervals.standard_errors import GROUPS, StandardError
from sfumato.evaluation.metrics.frechet import error_of_groups, frechet_distance
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float32Array, Float64Array, Int64Array, Moments

LEAST = 500


def extrapolate(size_P: Int64Array, value_P: Float64Array) -> float:
    """The least-squares line of value against 1 / size, at 0."""
    inverse_P = 1.0 / size_P
    centred_P = inverse_P - inverse_P.mean()
    slope = float(centred_P @ value_P / (centred_P @ centred_P))
    return float(value_P.mean() - slope * inverse_P.mean())


class InfinitySettings(Config):
    """The numbers of samples at which the distance is computed."""

    infinity_points: int = Field(
        15, ge=3, description="fd_infinity: numbers of samples at which the distance is computed."
    )
    infinity_start: float = Field(
        0.1, gt=0, lt=1, description="fd_infinity: the smallest of them, as a share of all samples."
    )


class FrechetInfinity(BaseMetric):
    """Lower is better. May fall below 0 for samples of the reference's own distribution."""

    Settings = InfinitySettings
    name = "fd_infinity"
    always_suffixed = True
    published: str | None = "fid_infinity"

    def least_samples(self, options: MetricOptions) -> int:
        """Enough for the smallest subset to be meaningful."""
        return LEAST

    def covariance_samples(self, samples: int, classes: int, options: MetricOptions) -> int:
        """The smallest subset."""
        return max(2, int(samples * options.of(InfinitySettings).infinity_start))

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        settings, total = options.of(InfinitySettings), len(generated)
        start, dim = self.covariance_samples(total, 1, options), generated.embedding_ND.shape[1]
        size_P = np.linspace(start, total, settings.infinity_points).astype(np.int64)
        rng = np.random.default_rng(options.settings.seed)
        rows = [np.sort(rng.permutation(total)[:size]) for size in size_P.tolist()]
        value_P = np.array(
            [frechet_distance(reference.moments, Moments.of(generated.embedding_ND[part])) for part in rows]
        )
        details: dict[str, object] = {
            "sizes": size_P.tolist(),
            "values": value_P.tolist(),
            "rank_deficient": start <= dim,
        }

        def error() -> StandardError:
            group_M = dealt(total, GROUPS, rng, generated.label_N)
            return _error(reference.moments, generated.embedding_ND, rows, group_M)

        marks = of_samples(min(start, len(reference)), dim)
        return MetricResult(self.name, extrapolate(size_P, value_P), details, error=error, marks=marks)


def _error(
    real: Moments, embedding_MD: Float32Array, rows: list[Int64Array], group_M: Int64Array
) -> StandardError:
    """Jackknife: a group leaves every subset at once, and the others stay where they are.

    So it sees what a sample does through all the subsets it is in. The residuals of the line do not: subsets
    share samples.
    """
    parts = [
        [Moments.of(embedding_MD[part[group_M[part] == group]]) for group in range(GROUPS)] for part in rows
    ]

    def kept(groups: Sequence[int]) -> float:
        merged = [reduce(Moments.merge, (part[group] for group in groups)) for part in parts]
        value_P = np.array([frechet_distance(real, moments) for moments in merged])
        return extrapolate(np.array([moments.n for moments in merged]), value_P)

    return error_of_groups(kept, real.mean_D)


METRICS: tuple[Metric, ...] = (FrechetInfinity(),)
