"""Recipes that ask for more than their data or their batches hold are refused, with what would do."""

from __future__ import annotations

from typing import Any

import pytest

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec

DIGITS = DataSpec(1, 8, 8, tuple("0123456789"))
GAN = {"family": "gan", "network": {"kind": "dcgan", "channels": [8]}}
VAE = {
    "family": "vae",
    "condition": "none",
    "network": {"channels": [4, 8], "norm_groups": 2},
}


def problems(model: dict[str, Any], samples: int | None = 100) -> list[str]:
    content = {
        "name": "x",
        "data": {"path": "nowhere", "streams": 4, "shuffle_window": 8},
        "model": model,
        "train": {"images": 1_000, "batch": 32, "preview_samples": 0},
    }
    return [line for line in recipes.parse(content).problems(DIGITS, samples) if line.startswith("model.")]


def ada(**fields: Any) -> dict[str, Any]:
    return {**GAN, "objective": {"augmentation": {"kind": "ada", **fields}}}


def vq(**fields: Any) -> dict[str, Any]:
    return {**VAE, "latent": {"kind": "vq", "channels": 4, "quantizer": fields}}


def test_ada_that_changes_by_more_than_its_range_is_refused() -> None:
    """Every 4 steps of 32 images, so that 128 is the least."""
    (line,) = problems(ada(images=127, interval=4))
    assert line.startswith("model.objective.augmentation.images: p changes every 128 images")
    assert line.endswith("use at least 128")
    assert problems(ada(images=128, interval=4)) == []
    assert problems(ada(images=1, interval=4, fixed=0.3)) == []


@pytest.mark.parametrize("kind", ["codebook", "ema", "residual"])
def test_codebooks_larger_than_the_data_are_refused(kind: str) -> None:
    """100 images of 4x4 places have 1,600 vectors."""
    (line,) = problems(vq(kind=kind, size=1_601))
    assert line == (
        "model.latent.quantizer.size: 1,601 codes, but 100 images of 16 places have only 1,600 vectors; use "
        "at most so many"
    )
    assert problems(vq(kind=kind, size=1_600)) == []
    assert problems(vq(kind=kind, size=1_601), samples=None) == [], "the data is not known yet"


def test_codes_that_no_data_has_to_fill_may_be_many() -> None:
    assert problems(vq(kind="fsq", levels=[8, 8, 8, 8])) == []
