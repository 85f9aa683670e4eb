"""Fréchet distance without the bias of a finite sample (Chong & Forsyth 2020: FID-infinity).

The distance of a finite sample is biased by about b / N, and b depends on the generator, so that a ranking
at one N may be wrong. The distance is computed on random subsets of growing size, and the line fitted to it
against 1 / N is read at 1 / N = 0.

The sizes are equally spaced in N, as in the authors' program. Departure from the paper: the samples are the
evaluation's own, not drawn by a Sobol sequence in the latent space. The reference stays finite.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from sfumato.core.config import Config
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float64Array, Int64Array, Moments
from sfumato.evaluation.weakness import of_samples

LEAST = 500


def extrapolate(size_P: Int64Array, value_P: Float64Array) -> tuple[float, float]:
    """The least-squares line of value against 1 / size at 0, and its standard error."""
    inverse_P = 1.0 / size_P
    centred_P = inverse_P - inverse_P.mean()
    slope = float(centred_P @ value_P / (centred_P @ centred_P))
    intercept = float(value_P.mean() - slope * inverse_P.mean())
    residual = value_P - intercept - slope * inverse_P
    variance = float(residual @ residual) / (len(size_P) - 2)
    error = variance * (1 / len(size_P) + inverse_P.mean() ** 2 / float(centred_P @ centred_P))
    return intercept, float(np.sqrt(error))


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
        value_P = np.array(
            [
                frechet_distance(
                    reference.moments,
                    Moments.of(generated.embedding_ND[np.sort(rng.permutation(total)[:size])]),
                )
                for size in size_P.tolist()
            ]
        )
        value, error = extrapolate(size_P, value_P)
        details: dict[str, object] = {
            "sizes": size_P.tolist(),
            "values": value_P.tolist(),
            "rank_deficient": start <= dim,
        }
        return MetricResult(
            self.name, value, details, error=error, marks=of_samples(min(start, len(reference)), dim)
        )


METRICS: tuple[Metric, ...] = (FrechetInfinity(),)
