"""Areas under ROC curves against scikit-learn, counting and simulation; detectability on Gaussians."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.intervals.roc import area, curve, true_positives_at
from sfumato.evaluation.metrics.detectability import Detectability, held_out_scores
from sfumato.evaluation.metrics.metric import MetricOptions


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_is_the_probability_of_the_right_order(ties: bool) -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.7, 1, 60), rng.normal(0, 1, 45)
    if ties:
        positive, negative = np.round(positive), np.round(negative)
    found = area(positive, negative)
    above = (positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2
    kinds = np.repeat([1, 0], [60, 45])
    assert found.value == pytest.approx(above)
    assert found.value == pytest.approx(roc_auc_score(kinds, np.concatenate([positive, negative])))
    false, true = curve(positive, negative)
    assert np.trapezoid(true, false) == pytest.approx(above)
    theirs = roc_curve(kinds, np.concatenate([positive, negative]), drop_intermediate=False)
    np.testing.assert_allclose(false, theirs[0])
    np.testing.assert_allclose(true, theirs[1])


def test_its_error_and_interval_are_those_of_repeated_draws() -> None:
    rng = np.random.default_rng(1)
    truth = norm.cdf(1.2 / np.sqrt(2))
    found = [area(rng.normal(1.2, 1, 80), rng.normal(0, 1, 60)) for _ in range(400)]
    spread = np.std([each.value for each in found], ddof=1)
    assert np.mean([each.stderr for each in found]) == pytest.approx(spread, rel=0.12)
    covered = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.92 <= covered <= 0.99


def test_at_the_ends_the_interval_keeps_a_width() -> None:
    best = area(np.arange(30) + 100.0, np.arange(30.0))
    assert best.value == 1 and best.high == 1 and 0.8 < best.low < 0.95
    worst = area(np.arange(30.0), np.arange(30) + 100.0)
    assert worst.value == 0 and worst.low == 0 and worst.high == pytest.approx(1 - best.low)
    with pytest.raises(ValueError, match="scores of both kinds"):
        area(np.array([]), np.ones(3))


def test_true_positives_at_a_rate_are_counted_above_its_threshold() -> None:
    rng = np.random.default_rng(2)
    positive, negative = rng.normal(1, 1, 500), rng.normal(0, 1, 2_000)
    for rate in (0.001, 0.01, 0.1):
        found = true_positives_at(positive, negative, rate)
        assert (negative > found["threshold"]).mean() <= rate
        lower = np.sort(negative)[::-1][int(rate * 2_000) + 1]
        assert (negative > lower).mean() > rate, "no lower threshold would do"
        assert found["true_positive_rate"] == (positive > found["threshold"]).mean()
        assert found["low"] < found["true_positive_rate"] < found["high"] and found["enough"]
    assert not true_positives_at(positive, negative[:500], 0.001)["enough"]


def test_detectability_is_the_area_of_the_best_linear_rule_on_gaussians() -> None:
    rng = np.random.default_rng(3)
    real = rng.normal(0, 1, (1_500, 6)).astype(np.float32)
    made = rng.normal(0, 1, (1_000, 6)).astype(np.float32)
    shift = np.array([0.8, 0, -0.6, 0, 0, 0], np.float32)
    result = Detectability().compute(FeatureSet(real), FeatureSet(made + shift), MetricOptions())
    truth = norm.cdf(np.linalg.norm(shift) / np.sqrt(2))
    assert result.error is not None
    error = result.error()
    assert error is not None
    assert abs(result.value - truth) < 3 * error.value + 0.005
    same = Detectability().compute(FeatureSet(real), FeatureSet(made), MetricOptions())
    assert abs(same.value - 0.5) < 0.05, "chance, since scores are of images that were not learnt from"


def test_no_image_is_scored_by_a_classifier_that_saw_it() -> None:
    """With as many dimensions as images a line separates any labels, which training scores would show."""
    rng = np.random.default_rng(4)
    real, made = (rng.normal(size=(120, 300)).astype(np.float32) for _ in range(2))
    scores = held_out_scores(real, made, penalty=1.0, seed=0)
    assert 0.35 < area(scores[1], scores[0]).value < 0.65
