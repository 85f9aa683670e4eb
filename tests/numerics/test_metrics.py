"""Moments, Fréchet distance and class accuracy against closed forms, scipy and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sfumato.errors import DataError
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.statistics import Moments

Floats = NDArray[np.float64]


def gaussian(seed: int, n: int, dim: int, scale: float = 1.0, shift: float = 0.0) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) * scale + shift


def exact(n: int, mean_D: Floats, covariance_DD: Floats) -> Moments:
    return Moments(n, mean_D, covariance_DD * (n - 1))


# Moments ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 60),
    dim=st.integers(1, 7),
    chunk=st.integers(1, 70),
    shift=st.sampled_from([0.0, 1e6]),
    seed=st.integers(0, 9),
)
def test_moments_in_chunks_equal_numpy(n: int, dim: int, chunk: int, shift: float, seed: int) -> None:
    x = gaussian(seed, n, dim, shift=shift)
    moments = Moments.of(x, chunk_rows=chunk)
    assert moments.n == n
    np.testing.assert_allclose(moments.mean_D, x.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        moments.covariance_DD, np.cov(x.T).reshape(dim, dim), rtol=1e-6, atol=1e-12 + 1e-9 * (shift > 0)
    )


def test_a_raw_sum_of_outer_products_would_have_failed_where_the_merge_does_not() -> None:
    x = gaussian(0, 500, 3, shift=1e8)
    truth = np.cov((x - 1e8).T)
    raw = (x.T @ x - len(x) * np.outer(x.mean(0), x.mean(0))) / (len(x) - 1)
    assert np.abs(raw - truth).max() > 1e-2
    np.testing.assert_allclose(Moments.of(x, chunk_rows=64).covariance_DD, truth, atol=1e-6)


def test_merging_with_nothing_changes_no_bit_and_mixed_dimensions_are_refused() -> None:
    moments = Moments.of(gaussian(1, 20, 4))
    for merged in (moments.merge(Moments.empty(4)), Moments.empty(4).merge(moments)):
        np.testing.assert_array_equal(merged.mean_D, moments.mean_D)
        np.testing.assert_array_equal(merged.scatter_DD, moments.scatter_DD)
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        moments.merge(Moments.empty(5))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        _ = Moments.of(np.zeros((1, 3))).covariance_DD


# Fréchet distance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_frechet_equals_the_formula_with_scipys_matrix_root(seed: int) -> None:
    a, b = gaussian(seed, 400, 12), gaussian(seed + 100, 300, 12, scale=0.7, shift=0.5)
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(s_a @ s_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s_a + s_b - 2 * root)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_gaussians_that_commute_has_a_closed_form() -> None:
    rng = np.random.default_rng(3)
    basis, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    sigma_a, sigma_b, shift = rng.uniform(0.1, 4, 20), rng.uniform(0.1, 4, 20), rng.normal(size=20)
    a = exact(100, np.zeros(20), basis @ np.diag(sigma_a**2) @ basis.T)
    b = exact(50, shift, basis @ np.diag(sigma_b**2) @ basis.T)
    expected = np.square(shift).sum() + np.square(sigma_a - sigma_b).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_frechet_in_one_dimension() -> None:
    a, b = exact(9, np.array([1.0]), np.array([[4.0]])), exact(9, np.array([3.0]), np.array([[9.0]]))
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


@pytest.mark.parametrize(("n", "dim"), [(500, 16), (40, 300), (2, 50)])
def test_frechet_of_a_set_with_itself_is_nothing_also_when_rank_deficient(n: int, dim: int) -> None:
    x = gaussian(7, n, dim)
    whole, merged = Moments.of(x), Moments.of(x, chunk_rows=7)
    assert frechet_distance(whole, whole) < 1e-6
    # Other chunks round otherwise; the distance must not blow that up.
    assert frechet_distance(whole, merged) < 1e-6


def test_frechet_of_rank_deficient_sets_is_right() -> None:
    """In a common subspace of 5 of 200 dimensions the distance is that of the 5."""
    a, b = gaussian(1, 30, 5), gaussian(2, 40, 5, shift=1.0)
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(200, 5)))
    small = frechet_distance(Moments.of(a), Moments.of(b))
    assert frechet_distance(Moments.of(a @ basis.T), Moments.of(b @ basis.T)) == pytest.approx(
        small, rel=1e-8
    )


def test_frechet_of_disjoint_subspaces_and_of_constant_sets() -> None:
    a, b = np.zeros((50, 6)), np.zeros((50, 6))
    a[:, :3], b[:, 3:] = gaussian(1, 50, 3), gaussian(2, 50, 3)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T))
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-9)
    ones, threes = Moments.of(np.ones((4, 6))), Moments.of(np.full((4, 6), 3.0))
    assert frechet_distance(ones, threes) == pytest.approx(24.0)


def test_the_metric_reports_rank_deficiency() -> None:
    x = gaussian(0, 10, 20).astype(np.float32)
    result = all_metrics()["fd"].compute(FeatureSet(x), FeatureSet(x), MetricOptions())
    assert result.value < 1e-6
    assert result.details["rank_deficient"] is True


# Class accuracy -----------------------------------------------------------------------------------------


def test_class_accuracy_counts_and_names_the_worst_class() -> None:
    asked = np.array([0, 0, 1, 1, 2, 2])
    seen = np.array([0, 0, 1, 2, 0, 1])
    logits = np.eye(3, dtype=np.float32)[seen]
    generated = FeatureSet(np.zeros((6, 1), np.float32), logits, asked)
    result = all_metrics()["class_accuracy"].compute(generated, generated, MetricOptions())
    assert result.value == 0.5
    assert result.details["per_class"] == {"0": 1.0, "1": 0.5, "2": 0.0}
    assert result.details["worst_class"] == 2


def test_class_accuracy_refuses_samples_without_labels() -> None:
    generated = FeatureSet(np.zeros((6, 1), np.float32), np.zeros((6, 3), np.float32), None)
    with pytest.raises(DataError, match=r"class-conditional model .* got no labels"):
        all_metrics()["class_accuracy"].compute(generated, generated, MetricOptions())
