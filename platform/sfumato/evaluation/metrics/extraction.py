"""Extraction: the share of the samples that repeat a training image, after Carlini et al. 2023 ("Extracting
Training Data from Diffusion Models").

A sample x is extracted from the training image y nearest to it if their distance is small for this region of
pictures: |x - y| <= alpha * mean over the n training images nearest to x, alpha = 0.5 and n = 50 there.
Distances are Euclidean, of pixels averaged down to at most 32 a side (the paper: 32 x 32 pixels, and tiles
of larger images). Training images with equal pixels count as one: a thousand copies of a picture are still
one picture, and would otherwise be one another's neighbours and hide themselves.

What the same rule says of real images that were not trained on (`evaluate.held_out`) is the rate that chance
and near duplicates in the data explain; without such images it is that of the training images, each left out
of its own neighbours. `p` is the probability of as many extracted samples at that rate (Fisher's exact test,
one-sided).

A model betrays what it has learned by heart without the training data, too: under one condition it draws the
same picture again and again. `cliques` are sets of at least `extraction_clique` samples of one class or
caption, each near-identical to each other by the same rule (there 10 of 500 samples of a prompt);
`in_training` says whether they are extracted from a training image. Cliques that are not are collapse, not
memorisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sfumato.core.config import Config
from sfumato.evaluation.intervals.standard_errors import StandardError
from sfumato.evaluation.intervals.uncertainty import IntervalSettings, interval_of_mean
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    Topic,
)
from sfumato.evaluation.neighbours.nearest import nearest_in, nearest_others
from sfumato.evaluation.small_pictures import Pictures, SmallPictures
from sfumato.evaluation.statistics import Float64Array, Int64Array, UInt8Array

SHOWN = 50
MOST_OF_A_CONDITION = 4_000
"""Samples of one condition that are compared with one another: all pairs are."""
_LEAST = 10
Bools = npt.NDArray[np.bool_]


class ExtractionSettings(Config):
    """When a sample repeats a training image."""

    extraction_alpha: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="extraction: a sample repeats its nearest training image if it is nearer than this share "
        "of its mean distance to the nearest `extraction_neighbours`.",
    )
    extraction_neighbours: int = Field(
        50, ge=2, description="extraction: how many different training images a distance is compared with."
    )
    extraction_clique: int = Field(
        10, ge=2, description="extraction: samples of one condition that must be near-identical to be listed."
    )


@dataclass(frozen=True, slots=True)
class Extracted:
    """Which samples repeat which training image. `reach_M` is the distance up to which a picture would."""

    distance_M: Float64Array
    reach_M: Float64Array
    index_M: Int64Array

    @property
    def yes_M(self) -> Bools:
        found: Bools = self.distance_M <= self.reach_M
        return found

    def take(self, rows_K: Int64Array) -> Extracted:
        return Extracted(self.distance_M[rows_K], self.reach_M[rows_K], self.index_M[rows_K])


def extracted(
    pixels_MD: UInt8Array, training_ND: UInt8Array, options: MetricOptions, *, own: bool = False
) -> Extracted:
    """Judges pictures against different training images; with `own` they are these, each left out."""
    settings = options.of(ExtractionSettings)
    count = min(settings.extraction_neighbours, len(training_ND) - own)
    x_MD, y_ND = pixels_MD.astype(np.float32) / 255, training_ND.astype(np.float32) / 255
    if own:
        near = nearest_others(x_MD, count, spread=options.spread)
    else:
        near = nearest_in(x_MD, y_ND, count, spread=options.spread)
    distance_Mk = np.sqrt(near.squared_Nk)
    reach_M = settings.extraction_alpha * distance_Mk.mean(axis=1)
    return Extracted(distance_Mk[:, 0], reach_M, near.index_Nk[:, 0])


def cliques(
    pixels_MD: UInt8Array, condition_M: Int64Array | None, found: Extracted, least: int
) -> list[Int64Array]:
    """Rows of samples of one condition that are all near-identical to one another, the largest sets first.

    Greedy: the sample with the most near-identical ones begins a set, which its nearest join if they are
    near-identical to all that are in it.
    """
    groups = (
        [np.arange(len(pixels_MD))]
        if condition_M is None
        else [np.flatnonzero(condition_M == one) for one in np.unique(condition_M)]
    )
    sets: list[Int64Array] = []
    for rows_G in groups:
        rows_G = rows_G[:MOST_OF_A_CONDITION]
        if len(rows_G) < least:
            continue
        x_GD = pixels_MD[rows_G].astype(np.float32) / 255
        norm_G = np.einsum("gd,gd->g", x_GD, x_GD)
        distance_GG = np.sqrt(np.maximum(norm_G[:, None] + norm_G[None] - 2 * x_GD @ x_GD.T, 0))
        reach_G = found.reach_M[rows_G]
        near_GG = distance_GG <= np.minimum(reach_G[:, None], reach_G[None])
        sets += [rows_G[members] for members in _greedy(near_GG, distance_GG, least)]
    return sorted(sets, key=lambda rows: (-len(rows), int(rows[0])))


def _greedy(near_GG: Bools, distance_GG: Float64Array, least: int) -> list[Int64Array]:
    free_G = np.ones(len(near_GG), bool)
    tried_G = np.zeros(len(near_GG), bool)
    sets: list[Int64Array] = []
    while True:
        degree_G = (near_GG & free_G).sum(axis=1) * (free_G & ~tried_G)
        seed = int(degree_G.argmax())
        if degree_G[seed] < least:
            return sets
        tried_G[seed] = True
        others = np.flatnonzero(near_GG[seed] & free_G)
        members = [seed]
        for other in others[np.argsort(distance_GG[seed, others], kind="stable")].tolist():
            if other != seed and near_GG[other, members].all():
                members.append(other)
        if len(members) >= least:
            free_G[members] = False
            sets.append(np.sort(np.array(members)))


class Extraction(BaseMetric):
    """Share of the samples that repeat a training image, 0 to 1; lower is better.

    The reference is taken for the training images.
    """

    Settings = ExtractionSettings
    name = "extraction"
    topic: Topic = "memorisation"
    reads_features = False
    inputs = (Pictures(),)

    def least_samples(self, options: MetricOptions) -> int:
        """Neighbours to compare with."""
        return _LEAST

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        """Raises DataError where there are no images."""
        found = _judged(reference, generated, options)
        terms_M = found.made.yes_M.astype(np.float64)
        return MetricResult(self.name, float(terms_M.mean()), _details(found, generated, options), terms_M)


class ExtractionExcess(Extraction):
    """`extraction` beyond the rate of images that are no copies, -1 to 1; lower is better, 0: no repeats.

    For gates on data with near duplicates, where real images that were not trained on are "extracted" too.
    """

    name = "extraction_excess"

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        """Raises DataError where there are no images."""
        found = _judged(reference, generated, options)
        rates = [float(yes.mean()) for yes in (found.made.yes_M, found.control.yes_M)]
        counts = [len(yes) for yes in (found.made.yes_M, found.control.yes_M)]
        variance = sum(rate * (1 - rate) / count for rate, count in zip(rates, counts, strict=True))
        error = StandardError(float(np.sqrt(variance)), "difference of two shares", low=-1.0, high=1.0)
        details = {"extraction": rates[0], "rate_of_no_copies": rates[1]}
        return MetricResult(self.name, rates[0] - rates[1], details, error=lambda: error)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Samples, and images that are no copies, against the different training images."""

    made: Extracted
    control: Extracted
    pictures: SmallPictures
    first_N: Int64Array
    """The first row of each different training image in the reference."""
    training: int
    held_out: bool


def _judged(reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> _Judged:
    """Computed once for both metrics."""

    def judge() -> _Judged:
        real, made = SmallPictures.of(reference), SmallPictures.of(generated)
        distinct, first_N = _distinct(real.pixels_ND)
        if real.held_out_MD is None:
            control = extracted(distinct, distinct, options, own=True)
        else:
            control = extracted(real.held_out_MD, distinct, options)
        found = extracted(made.pixels_ND, distinct, options)
        held_out = real.held_out_MD is not None
        return _Judged(found, control, made, first_N, len(real.pixels_ND), held_out)

    chosen = options.of(ExtractionSettings)
    key = ("extraction", reference, chosen.extraction_alpha, chosen.extraction_neighbours)
    return generated.derived(key, judge)


def _details(found: _Judged, generated: FeatureSet, options: MetricOptions) -> dict[str, object]:
    made = found.made
    condition_M = found.pictures.condition_N if found.pictures.condition_N is not None else generated.label_N
    least = options.of(ExtractionSettings).extraction_clique
    sets = cliques(found.pictures.pixels_ND, condition_M, made, least)
    return {
        "extracted": int(made.yes_M.sum()),
        "training_images_extracted": len(np.unique(made.index_M[made.yes_M])),
        "different_training_images": len(found.first_N),
        "training_images": found.training,
        **_control(made.yes_M, found.control.yes_M, held_out=found.held_out),
        "samples_in_cliques": sum(map(len, sets)),
        "most_extracted": _most(made, found.first_N),
        "cliques": [_told(rows, made, found.first_N, condition_M) for rows in sets[:SHOWN]],
    }


def _distinct(pixels_ND: UInt8Array) -> tuple[UInt8Array, Int64Array]:
    """Different pictures, and the first row of each."""
    _, first_N = np.unique(pixels_ND, axis=0, return_index=True)
    first_N = np.sort(first_N)
    return pixels_ND[first_N], first_N


def _control(yes_M: Bools, control_K: Bools, *, held_out: bool) -> dict[str, object]:
    """The rate of images that are no copies, its interval, and how likely the samples' rate is at it."""
    from scipy import stats

    interval = interval_of_mean(control_K.astype(np.float64), IntervalSettings(), seed=0)
    table = [[int(yes_M.sum()), int((~yes_M).sum())], [int(control_K.sum()), int((~control_K).sum())]]
    return {
        "rate_of_no_copies": float(control_K.mean()),
        "rate_of_no_copies_low": None if interval is None else interval.low,
        "rate_of_no_copies_high": None if interval is None else interval.high,
        "compared_with": "held-out images" if held_out else "training images, each left out",
        "p": float(stats.fisher_exact(table, alternative="greater").pvalue),
    }


def _most(found: Extracted, first_N: Int64Array) -> list[dict[str, object]]:
    """The training images that most samples repeat, by their position in the reference."""
    yes = np.flatnonzero(found.yes_M)
    image_K, count_K = np.unique(found.index_M[yes], return_counts=True)
    order = np.argsort(-count_K, kind="stable")[:SHOWN]
    rows = []
    for image, count in zip(image_K[order].tolist(), count_K[order].tolist(), strict=True):
        mine = yes[found.index_M[yes] == image]
        nearest = int(mine[found.distance_M[mine].argmin()])
        rows.append(
            {
                "training_image": int(first_N[image]),
                "samples": count,
                "nearest_sample": nearest,
                "distance": float(found.distance_M[nearest]),
            }
        )
    return rows


def _told(
    rows_K: Int64Array, found: Extracted, first_N: Int64Array, condition_M: Int64Array | None
) -> dict[str, object]:
    mine = found.take(rows_K)
    image = int(np.bincount(mine.index_M).argmax())
    return {
        "samples": len(rows_K),
        "first_sample": int(rows_K[0]),
        "condition": None if condition_M is None else int(condition_M[rows_K[0]]),
        "training_image": int(first_N[image]),
        "in_training": bool(mine.yes_M.mean() > 0.5),
    }


METRICS: tuple[Metric, ...] = (Extraction(), ExtractionExcess())
