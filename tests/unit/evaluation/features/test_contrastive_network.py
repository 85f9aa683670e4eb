"""Words to tokens, and a loss that is the paper's where no caption comes twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.core.rng import seeded
from sfumato.evaluation.features.contrastive_network import (
    LENGTH,
    PADDING,
    START,
    UNKNOWN,
    Pair,
    numbered,
    tokens,
    words_of,
)


@pytest.fixture(scope="module")
def pair() -> Pair:
    with seeded(0, "pair"):
        return Pair(3, 8, 8, words=5, base=8, dim=6).eval()


def test_words_and_tokens() -> None:
    words = words_of(["A red star.", "a blue star", "a"])
    assert words == ["a", "star", ".", "blue", "red"]
    ids = tokens(["a red dog", "a " * 50, ""], numbered(words))
    assert ids.shape == (3, LENGTH)
    assert ids[0, :5].tolist() == [START, 3, 7, UNKNOWN, PADDING]
    assert (ids[1, 1:] == 3).all()
    assert ids[2].tolist() == [START] + [PADDING] * (LENGTH - 1)


def test_a_text_depends_on_itself_alone(pair: Pair) -> None:
    numbers = numbered(["a", "star", ".", "blue", "red"])
    texts = ["a red star", "a", "", "a blue star . a red star . a red star"]
    together = pair.text(tokens(texts, numbers))
    for row, text in enumerate(texts):
        torch.testing.assert_close(pair.text(tokens([text], numbers))[0], together[row], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*pair.text(tokens(["a red star", "star red a"], numbers))), "order counts"


def test_the_loss_is_the_symmetric_cross_entropy(pair: Pair) -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = tokens(["a red", "a blue", "star", "a red"], numbered(["a", "star", ".", "blue", "red"]))
    image, text = (v.detach().numpy().astype(np.float64) for v in (pair.image(images), pair.text(ids)))
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text)]
    logits = np.exp(float(pair.warmth.detach())) * unit[0] @ unit[1].T
    wanted = np.eye(4)
    wanted[0, 3] = wanted[3, 0] = 1  # the same caption
    wanted /= wanted.sum(1, keepdims=True)
    losses = [
        -(wanted * (a - np.log(np.exp(a).sum(1, keepdims=True)))).sum(1).mean() for a in (logits, logits.T)
    ]
    assert float(pair.loss(images, ids).detach()) == pytest.approx(sum(losses) / 2, rel=1e-4)
