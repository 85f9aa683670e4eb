"""Standard errors of figures: against enumeration, closed forms, and the spread over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import softmax

from sfumato.evaluation.intervals.groups import dealt
from sfumato.evaluation.intervals.kernel_errors import variances
from sfumato.evaluation.intervals.standard_errors import (
    jackknife,
    jackknife_of_pairs,
    of_difference,
    of_halves,
    random_halves,
)
from sfumato.evaluation.kernels import cubic
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.density_coverage import _error_of_coverage
from sfumato.evaluation.metrics.inception_score import inception_score_error
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.neighbours.contents import Contents, contents
from sfumato.evaluation.neighbours.subsets import coverage_of_subsets, recall_of_subsets

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def brute_recall(real: Floats, made: Floats, k: int) -> float:
    within = cdist(made, made)
    np.fill_diagonal(within, np.inf)
    radius = np.sort(within, axis=1)[:, k - 1]
    return float((cdist(real, made) <= radius * (1 + 1e-9)).any(axis=1).mean())


def test_groups_are_random_and_each_holds_its_share_of_every_class() -> None:
    label = np.arange(1_003) % 10
    group = dealt(len(label), 10, np.random.default_rng(0), label)
    counts = np.array([np.bincount(label[group == g], minlength=10) for g in range(10)])
    assert counts.max() - counts.min() <= 1
    assert np.ptp(np.bincount(group)) <= 1
    without = dealt(1_000, 10, np.random.default_rng(0))
    shares = np.array([np.bincount(label[:1_000][without == g], minlength=10) for g in range(10)])
    assert shares.min() > 0 and shares.max() < 30, "no group is one class"
    assert (without != dealt(1_000, 10, np.random.default_rng(1))).any()


def test_recall_and_coverage_of_subsets_are_those_of_their_own_manifolds() -> None:
    """Repeated vectors and ties included; against a double loop for every subset."""
    rng = np.random.default_rng(0)
    real = np.round(rng.normal(size=(70, 2)), 1)
    made = np.round(rng.normal(size=(60, 2)), 1)
    kept = rng.random((9, 60)) < rng.uniform(0.45, 1, size=(9, 1))
    kept[0] = True
    k = 2
    recall = recall_of_subsets(real, made, kept, k)
    own = cdist(real, real)
    np.fill_diagonal(own, np.inf)
    radius = np.sort(own, axis=1)[:, k - 1]
    coverage = coverage_of_subsets(real, made, radius**2, kept)
    for row, subset in enumerate(kept):
        assert recall[row] == brute_recall(real, made[subset], k)
        held = (cdist(real, made[subset]) <= radius[:, None] * (1 + 1e-9)).any(axis=1)
        assert coverage[row] == held.mean()


def test_contents_count_and_tell_apart_what_balls_hold() -> None:
    rng = np.random.default_rng(1)
    real, made = rng.normal(size=(80, 3)), rng.normal(size=(50, 3))
    radius = rng.uniform(0.2, 1.2, size=80)
    inside = cdist(real, made) <= radius[:, None]
    found = contents(real, made, radius**2)
    assert (found.count_N == inside.sum(axis=1)).all()
    for a, b in itertools.combinations(range(80), 2):
        assert (found.token_N[a] == found.token_N[b]) == (inside[a] == inside[b]).all()
    alone = inside.sum(axis=1) == 1
    assert (found.last_N[alone] == inside[alone].argmax(axis=1)).all()


def test_the_variance_of_a_kernel_distance_is_unbiased_by_enumeration() -> None:
    """U^2 less the mean of h_ij h_kl over all distinct i, j, k, l has the variance of U for its mean."""
    rng = np.random.default_rng(2)
    real, made = rng.normal(size=(9, 3)), rng.normal(0.8, 1.3, size=(7, 3))
    within, across = (made @ made.T / 3 + 1) ** 3, ((made @ real.T / 3 + 1) ** 3).mean(axis=1)
    h = within - across[:, None] - across[None, :]
    u = float(np.mean([h[i, j] for i, j in itertools.permutations(range(7), 2)]))
    quads = [h[i, j] * h[k, m] for i, j, k, m in itertools.permutations(range(7), 4)]
    found = variances(torch.from_numpy(made), torch.from_numpy(real), cubic(3))
    assert found.of_estimate(7) == pytest.approx(u**2 - float(np.mean(quads)), rel=1e-9)


def test_the_error_of_coverage_has_the_closed_form_of_cells() -> None:
    """Disjoint balls that hold a sample with probability p: the variance of the number of filled cells."""
    rng = np.random.default_rng(3)
    cells, samples, reps = 200, 400, 60
    p = np.append(rng.dirichlet(np.full(cells, 3.0)) * 0.9, 0.1)
    empty = (1 - p[:-1]) ** samples
    both = (1 - p[:-1, None] - p[None, :-1]) ** samples
    covariance = both - empty[:, None] * empty[None, :]
    np.fill_diagonal(covariance, empty * (1 - empty))
    expected = covariance.sum() / cells**2
    found = []
    for _ in range(reps):
        cell_M = rng.choice(cells + 1, size=samples, p=p)
        count = np.bincount(cell_M, minlength=cells + 1)[:cells]
        last = np.array([np.flatnonzero(cell_M == c)[-1] if count[c] else -1 for c in range(cells)])
        held = Contents(count, np.arange(cells, dtype=np.uint64), last)
        error = _error_of_coverage(held, samples)
        assert error is not None
        found.append(error.value**2)
    assert np.mean(found) == pytest.approx(expected, rel=0.1)


def test_the_error_of_the_inception_score_leaves_out_each_sample_of_its_part() -> None:
    logits = np.random.default_rng(4).normal(size=(40, 5)).astype(np.float32) * 2
    order, splits = np.random.RandomState(7).permutation(40), 4
    variance = 0.0
    for part in np.split(order, splits):
        p = softmax(logits[part].astype(np.float64), axis=1)

        def score(q: Floats) -> float:
            return float(np.exp((q * np.log(q / q.mean(axis=0))).sum(axis=1).mean()))

        without = np.array([score(np.delete(p, i, axis=0)) for i in range(10)])
        variance += 9 / 10 * np.square(without - without.mean()).sum() / splits**2
    found = inception_score_error(logits, splits, seed=7)
    assert found is not None
    assert found.value == pytest.approx(variance**0.5, rel=1e-9)


def test_halves_of_a_mean_have_the_classical_error() -> None:
    rng, ratios = np.random.default_rng(5), []
    for _ in range(40):
        x = rng.exponential(size=300)
        found = of_halves(np.array([x[half].mean() for half in random_halves(300, rng)]))
        assert found is not None
        ratios.append(found.value**2 / (x.var(ddof=1) / 300))
    assert np.mean(ratios) == pytest.approx(1, abs=0.12)


def test_a_figure_that_is_quadratic_in_the_samples_is_not_counted_twice() -> None:
    """|mean|^2 of ten normal vectors around 0 varies by 2 D / 100; the plain jackknife finds twice that."""
    rng, dim = np.random.default_rng(6), 24
    plain, corrected = [], []
    for _ in range(150):
        x_GD = rng.normal(size=(10, dim))

        def squared_mean(kept: Sequence[int], x_GD: Floats = x_GD) -> float:
            return float(np.square(x_GD[kept].mean(axis=0)).sum())

        corrected.append(jackknife_of_pairs(squared_mean).value ** 2)
        without = [squared_mean([h for h in range(10) if h != g]) for g in range(10)]
        plain.append(jackknife(without).value ** 2)
    assert np.mean(plain) / (2 * dim / 100) > 1.8
    assert np.mean(corrected) / (2 * dim / 100) == pytest.approx(1.1, abs=0.15)


def test_the_pairs_of_groups_leave_a_linear_figure_as_it_is() -> None:
    x_G = np.random.default_rng(7).normal(size=10)
    found = jackknife_of_pairs(lambda kept: float(x_G[kept].mean()))
    assert found.value == pytest.approx(x_G.std(ddof=1) / 10**0.5, rel=1e-9)


def test_the_error_of_a_difference_leaves_out_what_two_runs_share() -> None:
    """Means of a + b and a + c: the error is that of the mean of b - c, whatever a is."""
    rng = np.random.default_rng(8)
    a, b, c = 10 * rng.normal(size=50), rng.normal(size=50), rng.normal(size=50)
    errors = []
    for terms in (a + b, a + c):
        deviation = (terms - terms.mean()) / np.sqrt(50 * 49)
        errors.append((float(np.square(deviation).sum() ** 0.5), deviation))
    (first, of_first), (second, of_second) = errors
    expected = (b - c).std(ddof=1) / 50**0.5
    assert of_difference(first, second, of_first, of_second) == pytest.approx(expected, rel=1e-9)
    wider = of_difference(np.hypot(first, 0.3), second, of_first, of_second)
    assert wider == pytest.approx(np.hypot(expected, 0.3), rel=1e-9), "what is not of samples counts in full"


@pytest.mark.parametrize("name", ["kid", "cmmd", "inception_score", "fd", "fd_infinity"])
def test_deviations_are_the_part_of_the_error_that_comes_from_samples(name: str) -> None:
    rng = np.random.default_rng(9)
    real, made = (
        FeatureSet(x.astype(np.float32), (2 * x[:, :3]).astype(np.float32))
        for x in (rng.normal(size=(300, 5)), rng.normal(0.8, 1.5, size=(600, 5)))
    )
    result = all_metrics()[name].compute(real, made, MetricOptions(settings=_settings()))
    error = result.error() if result.error is not None else None
    assert error is not None and error.deviation_P is not None
    share = float(np.square(error.deviation_P).sum()) / error.value**2
    assert 0.75 < share < 1.35, "far from the real images nearly all of it"


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("name", ["kid", "cmmd", "inception_score", "fd_infinity", "recall", "coverage"])
def test_errors_are_the_spread_over_seeds(name: str, labelled: bool) -> None:
    """Four classes in turn and far apart: samples drawn class by class vary less than labels alone tell."""
    rng = np.random.default_rng(6)
    metric, centres = all_metrics()[name], rng.normal(size=(4, 5))
    options = MetricOptions(settings=_settings())
    rows = 500 if name == "fd_infinity" else 200

    def drawn(n: int, scale: float, *, in_turn: bool) -> FeatureSet:
        label = np.arange(n) % 4 if in_turn else rng.integers(4, size=n)
        x = (centres[label] + scale * rng.normal(size=(n, 5))).astype(np.float32)
        logits = (3 * x @ centres.T).astype(np.float32)
        return FeatureSet(x, logits, label if in_turn else None)

    real = drawn(300, 1.0, in_turn=False)
    values, errors = [], []
    for _ in range(24):
        result = metric.compute(real, drawn(rows, 1.2, in_turn=labelled), options)
        assert result.error is not None and result.terms_M is None
        error = result.error()
        assert error is not None
        values.append(result.value)
        errors.append(error.value**2)
    ratio = float(np.sqrt(np.mean(errors)) / np.std(values, ddof=1))
    assert 0.65 < ratio < 1.55


def _settings() -> object:
    from sfumato.evaluation.metrics.settings import settings_class

    return settings_class()(kid_subset_size=100, kid_subsets=20, infinity_points=5)
