"""The figures of mode collapse against scipy's, and on sets that collapse in known ways."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import entropy

from sfumato.core.batch import DataSpec
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.metrics.collapse import METRICS, distances

CLASSES = 8
OPTIONS = None  # these metrics read none


def ring(labels: np.ndarray, noise: float, seed: int) -> FeatureSet:
    """Points about the eight modes of a ring, with the logits of a perfect classifier of modes."""
    angle_N = labels * (2 * np.pi / CLASSES)
    centre_N2 = np.stack((np.cos(angle_N), np.sin(angle_N)), 1)
    noise_N2 = np.random.default_rng(seed).normal(size=centre_N2.shape)
    logits_NK = np.eye(CLASSES, dtype=np.float32)[labels]
    return FeatureSet((centre_N2 + noise * noise_N2).astype(np.float32), logits_NK)


def labels(seed: int, among: int = CLASSES, rows: int = 1_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, among, rows)


def figures(made: FeatureSet, real: FeatureSet) -> dict[str, float]:
    return {metric.name: metric.compute(real, made, OPTIONS).value for metric in METRICS}  # type: ignore[arg-type]


def test_a_good_model_covers_everything() -> None:
    found = figures(ring(labels(1), 0.02, 1), ring(labels(2), 0.02, 2))
    assert found["classes_covered"] == 1
    assert found["class_kl"] < 0.02
    assert found["pair_distance"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("among", [1, 2, 5])
def test_missing_modes_are_counted(among: int) -> None:
    real, made = ring(labels(2), 0.02, 2), ring(labels(1, among), 0.02, 1)
    found = figures(made, real)
    assert found["classes_covered"] == among / CLASSES
    assert found["class_kl"] == pytest.approx(np.log(CLASSES / among), abs=0.05)
    assert found["pair_distance"] < (0.05 if among == 1 else 0.9)
    details = METRICS[0].compute(real, made, OPTIONS).details  # type: ignore[arg-type]
    assert details["missing"] == list(range(among, CLASSES))


def test_a_stray_sample_covers_no_class() -> None:
    one = np.zeros(1_000, dtype=np.int64)
    one[:5] = 3  # half a percent, of a class with an eighth of the real images
    assert figures(ring(one, 0.02, 1), ring(labels(2), 0.02, 2))["classes_covered"] == 1 / CLASSES


def test_the_divergence_is_that_of_scipy() -> None:
    made, real = labels(3, 5, 200), labels(4, CLASSES, 300)
    p_K, q_K = (np.bincount(x, minlength=CLASSES) for x in (made, real))
    assert figures(ring(made, 0, 0), ring(real, 0, 0))["class_kl"] == pytest.approx(entropy(p_K, q_K))
    assert figures(ring(real, 0, 0), ring(real, 0, 1))["class_kl"] == 0
    unseen = real[real != 2]
    q_K = np.bincount(unseen, minlength=CLASSES) + 0.5 * (np.arange(CLASSES) == 2)
    assert figures(ring(made, 0, 0), ring(unseen, 0, 0))["class_kl"] == pytest.approx(entropy(p_K, q_K))


def test_distances_are_those_of_all_pairs_of_a_batch() -> None:
    x_ND = np.random.default_rng(0).normal(size=(70, 3)).astype(np.float32)
    np.testing.assert_allclose(distances(x_ND), [cdist(x_ND, x_ND).sum() / (70 * 69)], rtol=1e-6)
    two = distances(np.concatenate([x_ND, x_ND + 1]))
    assert len(two) == 2 and two[0] != two[1]


def test_distances_do_not_depend_on_the_order_of_classes() -> None:
    label_N = np.arange(1_024) % CLASSES
    in_turn, by_class = (distances(ring(part, 0.02, 1).embedding_ND) for part in (label_N, np.sort(label_N)))
    every = ring(label_N, 0.02, 1).embedding_ND
    assert in_turn.mean() == pytest.approx(by_class.mean(), rel=0.02)
    assert in_turn.mean() == pytest.approx(cdist(every, every).sum() / (1_024 * 1_023), rel=0.02)


def test_one_class_is_no_histogram() -> None:
    (problem,) = METRICS[0].problems(DataSpec(channels=1, height=8, width=8))
    assert problem.startswith("classes_covered needs 2 or more classes, this data has 0")
