"""Distances and scores against torch-fidelity, scipy, higher precision and double loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from fidelity import (
    fid_features_to_statistics,
    fid_statistics_to_metric,
    isc_features_to_metric,
    kid_features_to_metric,
)
from numpy.typing import NDArray

from sfumato.core.batch import DataSpec
from sfumato.errors import DataError
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.cmmd import cmmd
from sfumato.evaluation.metrics.frechet import frechet_distance, root_trace
from sfumato.evaluation.metrics.frechet_infinity import extrapolate
from sfumato.evaluation.metrics.inception_score import inception_scores
from sfumato.evaluation.metrics.kid import kernel_distance, subset_distances
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions, reported_name
from sfumato.evaluation.metrics.settings import settings_class
from sfumato.evaluation.statistics import Moments

Singles = NDArray[np.float32]


def gaussian(seed: int, n: int, dim: int, scale: float = 1.0, shift: float = 0.0) -> Singles:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dim, dim)) / np.sqrt(dim)
    return (rng.normal(size=(n, dim)) @ mix * scale + shift).astype(np.float32)


# Fréchet ------------------------------------------------------------------------------------------------


def test_frechet_equals_torch_fidelity_and_scipy() -> None:
    a, b = gaussian(0, 700, 64), gaussian(1, 600, 64, 0.8, 0.1)
    ours = frechet_distance(Moments.of(a), Moments.of(b))
    one, two = (fid_features_to_statistics(torch.from_numpy(x).double()) for x in (a, b))
    theirs = fid_statistics_to_metric(one, two, False)["frechet_inception_distance"]
    root = scipy.linalg.sqrtm(one["sigma"] @ two["sigma"]).real
    direct = np.square(one["mu"] - two["mu"]).sum() + np.trace(one["sigma"] + two["sigma"] - 2 * root)
    assert ours == pytest.approx(theirs, rel=1e-8)
    assert ours == pytest.approx(direct, rel=1e-8)


def test_both_ways_to_the_trace_agree_where_both_are_good() -> None:
    """A tiny ridge below the limit of condition sends the same covariances the other way."""
    a, b = (Moments.of(gaussian(seed, 400, 48)).covariance_DD for seed in (0, 1))
    by_eigenvalues = root_trace(a, b)
    wide_a, wide_b = (np.pad(x, (0, 2)) for x in (a, b))
    assert root_trace(wide_a, wide_b) == pytest.approx(by_eigenvalues, rel=1e-10)


def test_frechet_of_100_samples_in_1280_dimensions_is_right() -> None:
    """Against the nuclear norm of the centred samples' product, which needs no covariance at all."""
    a, b = gaussian(0, 100, 1280), gaussian(1, 100, 1280, 0.9, 0.05)
    one, two = ((x.astype(np.longdouble) - x.astype(np.longdouble).mean(0)) / np.sqrt(99) for x in (a, b))
    shift = np.square(a.astype(np.longdouble).mean(0) - b.astype(np.longdouble).mean(0)).sum()
    nuclear = np.linalg.svd((one @ two.T).astype(np.float64), compute_uv=False).sum()
    expected = float(shift + np.square(one).sum() + np.square(two).sum()) - 2 * nuclear
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-9)


def test_moments_merge_in_any_order() -> None:
    x = gaussian(0, 900, 32, shift=50.0)
    parts = [Moments.of(part) for part in np.array_split(x, 7)]
    whole = Moments.of(x)
    for order in ([6, 2, 0, 5, 1, 4, 3], [3, 4, 1, 5, 0, 2, 6]):
        merged = Moments.empty(32)
        for index in order:
            merged = merged.merge(parts[index])
        np.testing.assert_allclose(merged.mean_D, whole.mean_D, rtol=1e-9)
        np.testing.assert_allclose(merged.scatter_DD, whole.scatter_DD, rtol=1e-9, atol=1e-9 * 900)
        assert frechet_distance(merged, whole) < 1e-9


def test_infinity_takes_the_bias_away() -> None:
    """Sets of one distribution: the distance at infinity is near 0 on average, that of the samples is not."""
    x = gaussian(0, 60_000, 6)
    reference, metric, options = FeatureSet(x[:50_000]), all_metrics()["fd_infinity"], MetricOptions()
    sets = [FeatureSet(part) for part in np.split(x[50_000:], 10)]
    results = [metric.compute(reference, part, options) for part in sets]
    plain = [frechet_distance(reference.moments, part.moments) for part in sets]
    assert abs(np.mean([result.value for result in results])) < 0.35 * np.mean(plain)
    assert results[0].value == metric.compute(reference, sets[0], options).value


def test_the_line_is_scipys() -> None:
    rng = np.random.default_rng(0)
    size = np.linspace(500, 5000, 15).astype(np.int64)
    value = 3 + 700 / size + rng.normal(size=15) * 0.02
    fit = scipy.stats.linregress(1 / size, value)
    assert extrapolate(size, value) == pytest.approx(fit.intercept, rel=1e-9)


def test_intra_class_distance_sees_swapped_classes() -> None:
    a, b = gaussian(0, 200, 8), gaussian(1, 200, 8, shift=3.0)
    label = np.repeat([0, 1], 200)
    real = FeatureSet(np.concatenate([a, b]), label_N=label)
    swapped = FeatureSet(np.concatenate([b, a]), label_N=label)
    metric = all_metrics()["intra_fd"]
    result = metric.compute(real, swapped, MetricOptions())
    assert all_metrics()["fd"].compute(real, swapped, MetricOptions()).value < 1e-6
    assert result.value == pytest.approx(frechet_distance(Moments.of(a), Moments.of(b)), rel=1e-9)
    assert metric.compute(real, real, MetricOptions()).value < 1e-6
    few = FeatureSet(a[:5], label_N=np.array([0, 0, 0, 0, 1]))
    with pytest.raises(
        DataError, match=r"every class or more, class 1 has 200 and 1: raise evaluate\.samples"
    ):
        metric.compute(real, few, MetricOptions())
    assert metric.problems(DataSpec(1, 8, 8)) == [
        "intra_fd needs classes, this data has none: leave it out of evaluate.metrics"
    ]


# Kernels ------------------------------------------------------------------------------------------------


def double_loop_kid(x: Singles, y: Singles) -> float:
    def kernel(u: Singles, v: Singles) -> float:
        return float((u.astype(float) @ v.astype(float) / len(u) + 1) ** 3)

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(u, v) for u in x for v in y) / (n * m)


def test_the_kernel_distance_equals_a_double_loop() -> None:
    x, y = gaussian(0, 60, 9), gaussian(1, 45, 9, 0.7, 0.4)
    assert kernel_distance(x, y) == pytest.approx(double_loop_kid(x, y), rel=1e-5)


@pytest.mark.parametrize("most", [900, 899])
def test_kid_equals_torch_fidelity_subset_by_subset(most: int) -> None:
    """In one pass over all pairs, and where there are too many, over those of each subset."""
    x, y = gaussian(0, 900, 128), gaussian(1, 700, 128, 0.9, 0.1)
    settings = settings_class()(kid_subsets=8, kid_subset_size=600, kid_all_samples=most)
    theirs = kid_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        kid_subsets=8,
        kid_subset_size=600,
        rng_seed=2020,
        verbose=False,
    )
    result = all_metrics()["kid"].compute(FeatureSet(y), FeatureSet(x), MetricOptions(settings=settings))
    assert result.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert result.details["subset_std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)
    expected = pytest.approx(kernel_distance(x, y), rel=1e-4) if most == 900 else None
    assert result.details["all_samples"] == expected


def test_kid_needs_a_subset_of_samples() -> None:
    assert all_metrics()["kid"].least_samples(MetricOptions()) == 1000
    with pytest.raises(ValueError, match="need 100 samples of either set, got 40, 200"):
        subset_distances(gaussian(0, 40, 4), gaussian(1, 200, 4), subsets=2, size=100, seed=0)


def test_cmmd_equals_the_authors_formula() -> None:
    x, y = gaussian(0, 130, 32).astype(np.float64), gaussian(1, 110, 32, shift=0.2).astype(np.float64)
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    gamma = 1 / (2 * 10**2)

    def mean(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
        return float(np.exp(-gamma * np.square(p[:, None] - q[None]).sum(-1)).mean())

    expected = 1000 * (mean(u, u) + mean(v, v) - 2 * mean(u, v))
    assert cmmd(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(expected, rel=1e-4)
    assert cmmd(x.astype(np.float32), x.astype(np.float32)) < 1e-9
    assert all_metrics()["cmmd"].only_features == ("clip",)


# Inception Score ----------------------------------------------------------------------------------------


def test_inception_score_equals_torch_fidelity() -> None:
    logits = gaussian(0, 503, 20, 3.0)
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=True, rng_seed=2020)
    real = FeatureSet(np.zeros((1, 1), np.float32))
    result = all_metrics()["inception_score"].compute(real, FeatureSet(logits, logits), MetricOptions())
    assert result.value == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert result.details["split_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_inception_score_at_its_ends() -> None:
    certain = 50 * np.eye(5, dtype=np.float32)[np.arange(100) % 5]
    assert inception_scores(certain, 1, 0)[0] == pytest.approx(5.0)
    assert inception_scores(np.zeros((40, 5), np.float32), 2, 0) == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="10 parts need 10 samples or more, got 3"):
        inception_scores(certain[:3], 10, 0)


# Names --------------------------------------------------------------------------------------------------


def test_published_names_belong_to_inception_alone() -> None:
    metrics = all_metrics()
    assert reported_name(metrics["fd"], "inception", several=False) == "fid"
    assert reported_name(metrics["fd"], "dinov2", several=False) == "fd_dinov2"
    assert reported_name(metrics["kid"], "inception", several=True) == "kid"
    assert reported_name(metrics["recall"], "inception", several=False) == "recall"
    assert reported_name(metrics["recall"], "inception", several=True) == "recall_inception"
