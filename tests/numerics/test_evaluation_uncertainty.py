"""Intervals, tests of differences, votes: against closed forms, scipy and what they promise when repeated."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats

from sfumato.evaluation.compare.regrouping import frechet_of_groups, grouped, regrouped_p
from sfumato.evaluation.compare.significance import sign_flip, two_sample
from sfumato.evaluation.compare.votes import Vote, bradley_terry, win_rates, wins
from sfumato.evaluation.intervals.uncertainty import Interval, IntervalSettings, interval, interval_of_mean
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.metrics.metric import FeatureSet, MetricResult
from sfumato.evaluation.statistics import Moments

SETTINGS = IntervalSettings()


def jackknifed(compute: Callable[[FeatureSet], float], drawn: FeatureSet) -> Interval:
    """The interval of a figure that is neither a mean nor has an error of its own."""

    def again(features: FeatureSet) -> MetricResult:
        return MetricResult("figure", compute(features))

    found = interval(again(drawn), again, drawn, SETTINGS, seed=0)
    assert found is not None and found.method == "jackknife over 10 groups of samples"
    return found


def test_the_interval_of_a_share_is_wilsons_by_its_formula() -> None:
    hits, n, z = 90, 100, 1.959963984540054
    found = interval_of_mean(np.repeat([1.0, 0.0], [hits, n - hits]), SETTINGS, seed=0)
    assert found is not None
    centre = (hits / n + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(hits / n * (1 - hits / n) / n + z * z / (4 * n * n))
    assert (found.low, found.high) == pytest.approx((centre - reach, centre + reach), abs=1e-9)
    all_hit = interval_of_mean(np.ones(50), SETTINGS, seed=0)
    assert all_hit is not None and all_hit.high == pytest.approx(1) and 0.9 < all_hit.low < 0.95


@pytest.mark.parametrize("distinct", [5, 1_000])
def test_the_bootstrap_of_a_mean_is_scipys(distinct: int) -> None:
    terms = np.random.default_rng(1).integers(0, distinct, 400).astype(float) ** 2
    found = interval_of_mean(terms, IntervalSettings(resamples=4_000), seed=7)
    assert found is not None
    theirs = stats.bootstrap((terms,), np.mean, n_resamples=4_000, method="percentile", rng=0)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.08 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.08 * width)
    assert found == interval_of_mean(terms, IntervalSettings(resamples=4_000), seed=7)


def test_the_jackknife_of_a_mean_has_the_classical_error_and_its_interval_covers() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        x = FeatureSet(rng.normal(size=(200, 1)).astype(np.float32))
        found = jackknifed(lambda kept: float(kept.embedding_ND.mean()), x)
        covered.append(found.low <= 0 <= found.high)
    assert found.stderr == pytest.approx(1 / math.sqrt(200), rel=0.6)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_the_jackknife_of_a_frechet_distance_sees_the_spread_over_seeds_not_the_bias() -> None:
    rng = np.random.default_rng(3)
    real = Moments.of(rng.normal(size=(4_000, 8)))
    values, errors = [], []
    for _ in range(40):
        drawn = FeatureSet((rng.normal(size=(500, 8)) + 0.3).astype(np.float32))
        values.append(frechet_distance(real, drawn.moments))
        found = jackknifed(lambda kept: frechet_distance(real, kept.moments), drawn)
        errors.append(found.stderr)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.35)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_jackknife_leaves_no_class_out(labelled: bool) -> None:
    """Ten classes far apart, dealt in turn to samples as generators do, and ten groups."""
    rng = np.random.default_rng(11)
    label_N = np.arange(500) % 10
    centres = 10 * rng.normal(size=(10, 4))
    real = Moments.of(centres[np.arange(4_000) % 10] + rng.normal(size=(4_000, 4)))
    values, errors = [], []
    for _ in range(40):
        embedding_ND = (centres[label_N] + rng.normal(size=(500, 4)) + 0.5).astype(np.float32)
        drawn = FeatureSet(embedding_ND, label_N=label_N if labelled else None)
        values.append(frechet_distance(real, drawn.moments))
        found = jackknifed(lambda kept: frechet_distance(real, kept.moments), drawn)
        errors.append(found.stderr)
    # Without labels the share of a class varies from group to group, which makes the error larger.
    assert np.mean(errors) < (1.5 if labelled else 10) * np.std(values, ddof=1)


def test_sign_flips_agree_with_scipys_permutation_test_for_few_and_for_many_values() -> None:
    rng = np.random.default_rng(5)
    for difference in (rng.integers(-1, 2, 60).astype(float) + 0.0, rng.normal(0.25, 1, 80)):
        theirs = stats.permutation_test(
            (difference,), np.sum, permutation_type="samples", n_resamples=9_999, rng=0
        )
        assert sign_flip(difference, rng) == pytest.approx(theirs.pvalue, abs=0.02)


def test_two_samples_agree_with_fishers_exact_test_and_with_scipys_permutation_test() -> None:
    rng = np.random.default_rng(6)
    a, b = np.repeat([1.0, 0.0], [30, 20]), np.repeat([1.0, 0.0], [18, 32])
    exact = stats.fisher_exact([[30, 20], [18, 32]]).pvalue
    assert two_sample(a, b, rng) == pytest.approx(exact, abs=0.01)
    a, b = rng.normal(size=90), rng.normal(0.3, 1, size=100)
    theirs = stats.permutation_test(
        (a, b), lambda x, y: x.mean() - y.mean(), n_resamples=2_000, rng=0, vectorized=False
    )
    assert two_sample(a, b, rng, resamples=2_000) == pytest.approx(theirs.pvalue, abs=0.03)


@pytest.mark.parametrize("in_pairs", [True, False])
def test_the_permutation_test_of_frechet_distances_is_level_and_finds_a_difference(in_pairs: bool) -> None:
    rng = np.random.default_rng(8)
    real = Moments.of(rng.normal(size=(1_000, 4)))

    def p(shift: float) -> float:
        a = rng.normal(size=(200, 4)).astype(np.float32)
        b = (rng.normal(size=(200, 4)) + shift).astype(np.float32)
        group = grouped(len(a), len(b), rng, in_pairs=in_pairs)
        figures = frechet_of_groups(real, (a, b), group)
        return regrouped_p(figures, rng, in_pairs=in_pairs, regroupings=[19])

    null = [p(0.0) for _ in range(20)]
    assert np.mean(np.array(null) <= 0.1) < 0.35, "noise alone is seldom called a difference"
    assert 0.25 < np.mean(null) < 0.8
    assert p(0.8) <= 0.05


def test_two_runs_have_bradley_terrys_closed_form() -> None:
    votes = [Vote("a", "b", "a")] * 30 + [Vote("b", "a", "b")] * 10
    won = wins(votes, ["a", "b"])
    strongest, weakest = bradley_terry(won, ["a", "b"])  # type: ignore[misc]
    assert strongest.name == "a"
    # log s_a - log s_b = logit(30/40) with variance 1/30 + 1/10; each strength is half of that.
    assert strongest.log_strength - weakest.log_strength == pytest.approx(math.log(3), abs=1e-9)
    reach = 1.959963984540054 * math.sqrt(1 / 30 + 1 / 10) / 2
    assert strongest.high - strongest.log_strength == pytest.approx(reach, rel=1e-6)
    (pair,) = win_rates(won, ["a", "b"])
    exact = stats.binomtest(30, 40).proportion_ci(method="wilson")
    assert (pair.rate, pair.votes) == (0.75, 40)
    assert (pair.low, pair.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_several_runs_maximise_the_likelihood_that_scipy_maximises() -> None:
    rng = np.random.default_rng(2)
    names = ["a", "b", "c", "d"]
    truth = np.array([0.9, 0.2, -0.3, -0.8])
    won = np.zeros((4, 4))
    for i in range(4):
        for j in range(i):
            hits = rng.binomial(40, 1 / (1 + np.exp(truth[j] - truth[i])))
            won[i, j], won[j, i] = hits, 40 - hits

    def loss(free: np.ndarray) -> float:
        log = np.append(free, -free.sum())
        return float((won * np.logaddexp(0, log[None, :] - log[:, None])).sum())

    best = optimize.minimize(loss, np.zeros(3), tol=1e-10).x
    expected = dict(zip(names, np.append(best, -best.sum()), strict=True))
    found = bradley_terry(won, names)
    assert found is not None
    assert [s.name for s in found] == sorted(names, key=lambda name: -expected[name])
    for strength in found:
        assert strength.log_strength == pytest.approx(expected[strength.name], abs=1e-4)
        assert strength.low < truth[names.index(strength.name)] < strength.high


def test_draws_count_half_and_a_run_that_never_won_has_no_finite_strength() -> None:
    won = wins([Vote("a", "b", None), Vote("a", "b", None), Vote("b", "a", "a")], ["a", "b"])
    assert won.tolist() == [[0, 2], [1, 0]]
    assert bradley_terry(wins([Vote("a", "b", "a")] * 5, ["a", "b"]), ["a", "b"]) is None
    assert win_rates(wins([Vote("a", "b", "a")] * 5, ["a", "b"]), ["a", "b"])[0].rate == 1.0
