"""What the rows of table.py share: drawing, silhouettes, and figures with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sfumato.core.batch import Texts
from sfumato.core.conditions import Listed
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import Images, from_uint8

SEED = 1_000
OBJECT = 0.15
"""Least difference from the background of a pixel of an object, of values in [0, 1]."""
Masks = NDArray[np.bool_]
Row = Callable[[Generator, Generator | None, int], dict[str, Any]]
"""Measures a model, beside its base if that is given, on so many pictures."""


def share(hits: Sequence[bool], aim: float) -> dict[str, Any]:
    """Of those that hit, with Wilson's interval."""
    found = stats.binomtest(int(np.sum(hits)), len(hits)).proportion_ci(0.95, "wilson")
    value = float(np.mean(hits))
    return {
        "value": value,
        "interval": [float(found.low), float(found.high)],
        "aim": aim,
        "met": value >= aim,
    }


def mean(values: Sequence[float], aim: float) -> dict[str, Any]:
    """With the normal interval."""
    value, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    interval = [value - 1.96 * error, value + 1.96 * error]
    return {"value": value, "interval": interval, "aim": aim, "met": value >= aim}


def ratio(above: Sequence[float], below: Sequence[float], aim: float) -> dict[str, Any]:
    """Of the means of paired values, with the bootstrap's percentile interval."""
    pairs = np.stack([above, below])
    rows = np.random.default_rng(SEED).integers(0, pairs.shape[1], (2_000, pairs.shape[1]))
    ups, downs = pairs[:, rows].mean(axis=2)
    value = float(pairs[0].mean() / max(pairs[1].mean(), 1e-12))
    interval = np.quantile(ups / np.maximum(downs, 1e-12), [0.025, 0.975]).tolist()
    return {"value": value, "interval": interval, "aim": aim, "met": value >= aim}


def drawn(model: Generator, number: int, texts: Sequence[str], **pictures: Images) -> Images:
    """A sample for each text, or for the texts in turn, with pictures as further conditions."""
    conditions: dict[str, Any] = {
        name: Listed("image", from_uint8(value)) for name, value in pictures.items()
    }
    return model.sample(number, seed=SEED, conditions={**conditions, "text": Listed("text", Texts(texts))})


def silhouettes(shown: Images) -> Masks:
    """Which pixels [N, H, W] differ from their picture's background, which is its median colour."""
    ground = np.median(shown.reshape(len(shown), -1, shown.shape[-1]), axis=1)[:, None, None]
    there: Masks = np.abs(shown.astype(float) - ground).max(axis=-1) / 255 > OBJECT
    return there


def overlaps(one: Masks, two: Masks) -> list[float]:
    """The IoU of each pair of silhouettes; 0 where both are empty."""
    return [float((a & b).sum() / max(1, (a | b).sum())) for a, b in zip(one, two, strict=True)]
