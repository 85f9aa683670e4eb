"""Ranks against a loop over pairs, and what ties and equal captions mean."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sfumato.evaluation.retrieval_ranks import ranks


def by_hand(image: np.ndarray, text: np.ndarray, pool: int) -> list[int]:
    """Caption by caption, image by image, with cosines of single vectors."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    found = []
    for row in range(len(image)):
        first = min(row - row % pool, len(image) - pool)
        own = cosine(text[row], image[row])
        found.append(
            sum(
                cosine(text[row], image[other]) >= own
                for other in range(first, first + pool)
                if not np.array_equal(text[other], text[row])
            )
        )
    return found


@pytest.mark.parametrize(("rows", "pool"), [(12, 12), (12, 4), (11, 4)])
def test_ranks_are_those_of_single_pairs(rows: int, pool: int) -> None:
    rng = np.random.default_rng(rows + pool)
    image, text = (rng.normal(size=(rows, 5)).astype(np.float32) for _ in range(2))
    text[3] = text[1]
    assert ranks(image, text, pool).tolist() == by_hand(image, text, pool)


def test_right_pairs_come_first_and_images_that_are_all_alike_last() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    assert (ranks(vectors, 3 * vectors, 50) == 0).all()
    assert (ranks(np.ones_like(vectors), vectors, 50) == 49).all()
    assert (ranks(vectors, np.ones_like(vectors), 50) == 0).all(), "one caption for all: every image is right"


@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_the_share_varies_as_one_of_independent_captions(noise: float) -> None:
    """So that Wilson's interval holds: captions of one pool share their images, which hardly matters."""
    rng, size = np.random.default_rng(0), 300
    shares = []
    for _ in range(250):
        text = rng.normal(size=(size, 16)).astype(np.float32)
        image = text + noise * rng.normal(size=text.shape).astype(np.float32)
        shares.append((ranks(image, text, 100) < 1).mean())
    mean = np.mean(shares)
    assert 0.2 < mean < 0.8
    assert np.var(shares, ddof=1) == pytest.approx(mean * (1 - mean) / size, rel=0.3)
    inside = [wilson(share, size, mean) for share in shares]
    assert 0.91 <= np.mean(inside) <= 0.99


def wilson(share: float, size: int, truth: float) -> bool:
    found = stats.binomtest(round(share * size), size).proportion_ci(0.95, method="wilson")
    return bool(found.low <= truth <= found.high)
