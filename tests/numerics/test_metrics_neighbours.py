"""Neighbours, and the metrics that count them, against double loops in float64 and the `prdc` package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fidelity import calculate_precision_recall_full
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from prdc import compute_prdc
from scipy.spatial.distance import cdist

from sfumato.evaluation.metric_options import MetricSettings
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.authenticity import Authenticity
from sfumato.evaluation.metrics.memorisation import mann_whitney_z, memorisation
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.metrics.realism import realism
from sfumato.evaluation.neighbours.balls import memberships
from sfumato.evaluation.neighbours.cloud import Cloud, rounded_squared
from sfumato.evaluation.neighbours.nearest import nearest_in, nearest_others
from sfumato.evaluation.parallel_map import OnRay

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
FOUR = ("precision", "recall", "density", "coverage")


def gaussian(seed: int, n: int, dim: int, scale: float = 1.0, shift: float = 0.0) -> Singles:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) * scale + shift).astype(np.float32)


def clouds(kind: str) -> tuple[Singles, Singles]:
    """Pairs of sets that are hard for float32: near-copies far from the mean, repeats, offsets, lattices."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(190, 24)), rng.normal(size=(150, 24))
    if kind == "tight clusters far apart":
        centres = rng.normal(size=(5, 24)) * 1000
        a, b = centres[np.arange(190) % 5] + 1e-2 * a, centres[np.arange(150) % 5] + 1e-2 * b
    elif kind == "repeats":
        a[40:] = a[np.arange(150) % 40]
        b[:100] = a[:100]
    elif kind == "lattice":
        a, b = np.round(a), np.round(b)
    elif kind == "far from the origin":
        a, b = a + 1e4, b + 1e4
    return a.astype(np.float32), b.astype(np.float32)


KINDS = ("gaussian", "tight clusters far apart", "repeats", "lattice", "far from the origin")


def true_radii(x: NDArray[np.floating], k: int) -> Floats:
    squared = cdist(x.astype(np.float64), x.astype(np.float64), "sqeuclidean")
    np.fill_diagonal(squared, np.inf)
    radii: Floats = np.sort(squared, axis=1)[:, k - 1]
    return radii


def compute(name: str, real: Singles, fake: Singles, k: int = 3) -> float:
    return all_metrics()[name].compute(FeatureSet(real), FeatureSet(fake), alike(k)).value


def alike(k: int) -> MetricOptions:
    """All four metrics with balls of one size."""
    return MetricOptions(k, MetricSettings(density_k=None))


# Neighbours ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [37, 64, 2048])
def test_neighbours_and_balls_equal_float64_for_any_block(kind: str, block: int) -> None:
    a, b = clouds(kind)
    within = nearest_others(a, 3, block=block)
    radius_b = nearest_others(b, 3, block=block).squared_Nk[:, 2]
    np.testing.assert_allclose(within.squared_Nk[:, 2], true_radii(a, 3), rtol=1e-12)
    np.testing.assert_allclose(radius_b, true_radii(b, 3), rtol=1e-12)
    across = cdist(a.astype(np.float64), b.astype(np.float64), "sqeuclidean")
    found = nearest_in(b, a, 2, block=block)
    np.testing.assert_allclose(found.squared_Nk, np.sort(across.T, axis=1)[:, :2], rtol=1e-12)
    np.testing.assert_allclose(
        across[found.index_Nk[:, 0], np.arange(len(b))], found.squared_Nk[:, 0], rtol=1e-12
    )
    counts = memberships(a, b, within.squared_Nk[:, 2], radius_b, block=block)
    in_a = across <= within.squared_Nk[:, 2:] * (1 + 1e-12)
    in_b = across <= radius_b[None] * (1 + 1e-12)
    np.testing.assert_array_equal(counts.balls_of_a_M, in_a.sum(0))
    np.testing.assert_array_equal(counts.a_holds_N, in_a.any(1))
    np.testing.assert_array_equal(counts.a_inside_N, in_b.any(1))


def test_blocks_and_workers_change_no_bit(ray_local: None) -> None:
    a, b = gaussian(0, 300, 12), gaussian(1, 200, 12)
    alone = nearest_others(a, 3)
    for other in (
        nearest_others(a, 3, block=41),
        nearest_others(a, 3, block=64, spread=OnRay(workers=2, cpus=0.5)),
    ):
        np.testing.assert_array_equal(other.squared_Nk, alone.squared_Nk)
        np.testing.assert_array_equal(other.index_Nk, alone.index_Nk)
    order = np.random.default_rng(0).permutation(len(a))
    np.testing.assert_array_equal(nearest_others(a[order], 3).squared_Nk, alone.squared_Nk[order])
    assert compute("density", a, b) == compute("density", a[order], b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_stays_within_its_bound(kind: str, dtype: torch.dtype) -> None:
    a, b = clouds(kind)
    first = Cloud.of(a)
    second = Cloud.of(b, first.centre_D)
    rounded = rounded_squared(first, (0, len(a)), second, (0, len(b)), dtype).double().numpy()
    truth = cdist(a.astype(np.float64), b.astype(np.float64), "sqeuclidean")
    bound = first.slack_N(dtype)[:, None] + second.slack_N(dtype)[None]
    assert (np.abs(rounded - truth) <= bound + 1e-15 * truth).all()


def test_more_neighbours_than_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 3 samples, got 3"):
        nearest_others(gaussian(0, 3, 2), 3)
    with pytest.raises(ValueError, match="need 4 samples or more, got 3"):
        nearest_in(gaussian(0, 5, 2), gaussian(0, 3, 2), 4)
    for name in (*FOUR, "realism", "authenticity"):
        assert all_metrics()[name].least_samples(alike(7)) == 8


# Precision, recall, density, coverage -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_four_equal_the_prdc_package(seed: int, k: int) -> None:
    real, fake = gaussian(seed, 150, 8), gaussian(seed, 120, 8, scale=0.8, shift=0.4)
    theirs = compute_prdc(real.astype(np.float64), fake.astype(np.float64), nearest_k=k)
    for name in FOUR:
        assert compute(name, real, fake, k) == pytest.approx(theirs[name], rel=1e-12)


def test_density_and_coverage_have_a_k_of_their_own_and_share_the_search() -> None:
    """In either order, next to precision and recall of another k, and of fewer images than theirs needs."""
    a, b = gaussian(0, 150, 8), gaussian(1, 120, 8, scale=0.8, shift=0.4)
    theirs = {k: compute_prdc(a.astype(np.float64), b.astype(np.float64), nearest_k=k) for k in (3, 5, 9)}
    for own, names in ((5, FOUR), (5, FOUR[::-1]), (9, FOUR), (3, FOUR)):
        real, fake = FeatureSet(a), FeatureSet(b)
        options = MetricOptions(3, MetricSettings(density_k=own))
        found = {name: all_metrics()[name].compute(real, fake, options) for name in names}
        for name in FOUR:
            k = 3 if name in ("precision", "recall") else own
            assert found[name].value == pytest.approx(theirs[k][name], rel=1e-12)
            assert found[name].details["k"] == k
        searches = [key for key in real._derived if key[0] == "own neighbours"]
        passes = [key for key in fake._derived if key[0] == "mutual"]
        assert (len(searches), len(passes)) == (1, 1)
    few = FeatureSet(a[:5]), FeatureSet(b[:5])
    assert all_metrics()["precision"].compute(*few, MetricOptions()).details["k"] == 3
    assert all_metrics()["density"].least_samples(MetricOptions()) == 6


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_equal_torch_fidelity(seed: int) -> None:
    real, fake = gaussian(seed, 150, 8), gaussian(seed, 120, 8, scale=0.8, shift=0.4)
    theirs = calculate_precision_recall_full(torch.from_numpy(fake).double(), torch.from_numpy(real).double())
    assert (compute("precision", real, fake), compute("recall", real, fake)) == pytest.approx(
        theirs, rel=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=6, max_size=25),
    st.lists(st.tuples(st.integers(-2, 6), st.integers(-2, 6)), min_size=6, max_size=25),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_ties_and_repeats_count_exactly(
    real: list[tuple[int, int]], fake: list[tuple[int, int]], k: int, block: int
) -> None:
    """On a lattice many distances tie and rows repeat: the surface of a ball belongs to it, in any block."""
    a, b = np.array(real, dtype=np.float32), np.array(fake, dtype=np.float32)
    counts = memberships(a, b, true_radii(a, k), true_radii(b, k), block=block)
    across = cdist(a, b, "sqeuclidean")
    np.testing.assert_array_equal(counts.balls_of_a_M, (across <= true_radii(a, k)[:, None]).sum(0))
    np.testing.assert_array_equal(counts.a_inside_N, (across <= true_radii(b, k)[None]).any(1))


def test_identical_sets_have_full_precision_and_recall_also_with_repeats() -> None:
    x = np.repeat(gaussian(4, 60, 40), 5, axis=0) + 100
    for name in ("precision", "recall", "coverage"):
        assert compute(name, x, x.copy()) == 1.0


def test_a_collapsed_generator_is_precise_and_recalls_nothing() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 8)).astype(np.float32)
    fake = (real[:1] + 1e-3 * rng.normal(size=(300, 8))).astype(np.float32)
    assert compute("precision", real, fake) == 1.0
    assert compute("recall", real, fake) < 0.05
    assert compute("coverage", real, fake) < 0.05


def test_two_halves_of_one_distribution_have_density_one() -> None:
    """Naeem et al. 2020, Lemma 1: its expectation is 1."""
    x = np.random.default_rng(0).normal(size=(4000, 6)).astype(np.float32)
    assert compute("density", x[:2000], x[2000:], 5) == pytest.approx(1.0, abs=0.05)
    # Lemma 2: 1 - (N-1)...(N-k) / ((2N-1)...(2N-k)) for equal numbers.
    expected = 1 - np.prod([(2000 - i) / (4000 - i) for i in range(1, 6)])
    assert compute("coverage", x[:2000], x[2000:], 5) == pytest.approx(expected, abs=0.02)


def test_values_are_the_means_of_their_terms() -> None:
    real, fake = FeatureSet(gaussian(0, 150, 8)), FeatureSet(gaussian(1, 120, 8, scale=0.9))
    for name in ("precision", "density", "authenticity", "memorisation"):
        result = all_metrics()[name].compute(real, fake, MetricOptions())
        assert result.terms_M is not None
        assert result.terms_M.mean() == pytest.approx(result.value, rel=1e-12)


# Realism, memorisation, authenticity --------------------------------------------------------------------


def test_realism_equals_the_formula() -> None:
    real, fake = FeatureSet(gaussian(0, 120, 8)), FeatureSet(gaussian(1, 90, 8, scale=0.9))
    radius = np.sqrt(true_radii(real.embedding_ND, 3))
    kept = radius <= np.median(radius)
    distance = cdist(fake.embedding_ND.astype(float), real.embedding_ND[kept].astype(float))
    expected = (radius[kept][None] / distance).max(axis=1)
    for block in (16, 2048):
        np.testing.assert_allclose(realism(real, fake, MetricOptions(), block), expected, rtol=1e-9)
    result = all_metrics()["realism"].compute(real, fake, MetricOptions())
    assert result.details["most_real"][0] == expected.argmax()
    assert result.details["least_real"][0] == expected.argmin()
    copies = all_metrics()["realism"].compute(real, FeatureSet(real.embedding_ND), MetricOptions())
    assert np.isfinite(copies.value)


def test_copies_of_training_images_are_found_and_named() -> None:
    rng = np.random.default_rng(0)
    training = rng.normal(size=(500, 6)).astype(np.float32)
    honest = rng.normal(size=(400, 6)).astype(np.float32)
    copying = honest.copy()
    copying[:40] = training[100:140] + 1e-4
    held_out = FeatureSet(rng.normal(size=(500, 6)).astype(np.float32))
    for others in (None, held_out):
        fair = memorisation(FeatureSet(training), FeatureSet(honest), MetricOptions(), others)
        caught = memorisation(FeatureSet(training), FeatureSet(copying), MetricOptions(), others)
        assert fair.value < 0.04
        assert 0.1 <= caught.value < 0.14
        named = {(pair["sample"], pair["training_image"]) for pair in caught.details["closest_pairs"]}
        assert named <= {(row, 100 + row) for row in range(40)}
        assert caught.details["mann_whitney_z"] < fair.details["mann_whitney_z"]
        assert abs(fair.details["mann_whitney_z"]) < 4


def test_the_standardised_mann_whitney_statistic_is_scipys() -> None:
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=60), rng.normal(size=45) + 0.3
    z = mann_whitney_z(a, b)
    from scipy.special import ndtr

    theirs = mannwhitneyu(a, b, method="asymptotic", use_continuity=False, alternative="less").pvalue
    assert ndtr(z) == pytest.approx(theirs, rel=1e-9)


def test_authenticity_equals_a_double_loop_and_finds_noisy_copies() -> None:
    training, fake = gaussian(0, 120, 5), gaussian(1, 90, 5, scale=0.9)
    own, across = np.sqrt(true_radii(training, 1)), cdist(training.astype(float), fake.astype(float))
    nearest = across.argmin(axis=0)
    expected = np.mean([across[near, j] > own[near] for j, near in enumerate(nearest)])
    result = Authenticity().compute(FeatureSet(training), FeatureSet(fake), MetricOptions())
    assert result.value == pytest.approx(expected)
    noisy = training + np.float32(1e-4)
    assert Authenticity().compute(FeatureSet(training), FeatureSet(noisy), MetricOptions()).value == 0.0
