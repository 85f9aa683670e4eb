"""The short form of `make check-features`: the digits on the classifier, and what used to go wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_sanity import UNIFORM, InMemory, compared, faults, figures, halves
from sklearn.datasets import load_digits

from sfumato.evaluation.features.classifier import ClassifierKind, ClassifierOptions


@pytest.fixture(scope="module")
def digits() -> tuple[InMemory, InMemory]:
    found = load_digits()
    images = (found.images * 255 / 16).round().astype(np.uint8)[..., None]
    return halves(images, found.target.astype(np.int64), "digits")


def test_every_metric_orders_sets_of_digits_rightly(
    digits: tuple[InMemory, InMemory], tmp_path: Path
) -> None:
    real, rest = digits
    extractor = ClassifierKind().build(real, ClassifierOptions(seen=8_000), tmp_path)
    assert faults(figures(extractor, real, compared(rest, 300))) == []


def test_without_damaged_images_the_same_classifier_takes_noise_for_digits(
    digits: tuple[InMemory, InMemory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, rest = digits
    nothing = torch.empty(0, 1, 8, 8)
    monkeypatch.setattr("sfumato.evaluation.features.classifier_training.damaged", lambda x: nothing)
    extractor = ClassifierKind().build(real, ClassifierOptions(seen=8_000), tmp_path)
    found = figures(extractor, real, compared(rest, 300))
    assert found[UNIFORM]["precision"] > 0.05
    assert any(line.startswith(f"{UNIFORM}: precision") for line in faults(found))
