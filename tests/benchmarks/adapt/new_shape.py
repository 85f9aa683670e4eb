"""A shape that no model has seen, a ring: five pictures to learn it from, and whether a model draws it.

    PYTHONPATH=platform python tests/benchmarks/adapt/new_shape.py FOLDER

writes the pictures, each with its caption beside it, for pipelines/shapes/adapt/dreambooth.yaml.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from judging import SEED, drawn, overlaps, share
from PIL import Image

from sfumato.data.shapes.checker import Checker
from sfumato.data.shapes.phrases import captions
from sfumato.data.shapes.rendering import template
from sfumato.data.shapes.scenes import scenes
from sfumato.data.shapes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, SIZES
from sfumato.evaluation.metrics.alignment import verdicts
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import Images

WORD = "sks"
SIDE, FINE = 32, 8
BOX = round(SIZES["large"] * SIDE)
HOLE = 0.5
"""Radius of the hole, of a ring of radius 1."""
LEAST = 0.6
"""IoU with the ring from which an object is one, if none of the other shapes is nearer."""


def ring(side: int) -> np.ndarray:
    """How much of each pixel of its box [side, side] the ring covers, 0 to 1."""
    at = (np.arange(side * FINE) + 0.5) / (side * FINE) * 2 - 1
    radius = np.hypot(*np.meshgrid(at, at))
    inside = (radius <= 1) & (radius >= HOLE)
    return inside.reshape(side, FINE, side, FINE).mean((1, 3))


def pictures() -> tuple[Images, list[str]]:
    """Five, uint8 [5, 32, 32, 3], of different colours, places and backgrounds; and their captions."""
    grounds, found, texts = list(BACKGROUNDS.values()), [], []
    colours = ("red", "green", "blue", "yellow", "purple")
    for number, (x, y) in enumerate(((2, 3), (16, 4), (9, 9), (3, 17), (17, 16))):
        canvas = np.tile(np.array(grounds[number % len(grounds)], float), (SIDE, SIDE, 1))
        box = canvas[y : y + BOX, x : x + BOX]
        box += ring(BOX)[..., None] * (np.array(COLOURS[colours[number]], float) - box)
        found.append(np.rint(canvas).astype(np.uint8))
        texts.append(f"a {colours[number]} {WORD} shape")
    return np.stack(found), texts


def dreambooth(model: Generator, base: Generator | None, number: int) -> dict[str, Any]:
    """Whether the ring is drawn where it is asked for, in the colour; alignment of other prompts."""
    colours = [list(COLOURS)[n % len(COLOURS)] for n in range(number)]
    shown = drawn(model, number, [f"a {colour} {WORD} shape" for colour in colours])
    rings = are_rings(shown)
    read = Checker(SIDE).read(shown)
    right = [
        ring and found is not None and found.things[0].colour == colour
        for ring, found, colour in zip(rings, read, colours, strict=True)
    ]
    asked = scenes(SEED, np.arange(number), "seen", SIDE, ("single_object", "colours"))
    texts = [found[0] for found in captions(asked, SEED)]
    found = {
        "drawn where asked": share(rings, 0.8),
        "in the colour asked for": share(right, 0.0),
        "alignment": share(verdicts(drawn(model, number, texts), texts)[:, 2], 0.0),
    }
    if base is not None:
        found["alignment of the base"] = share(verdicts(drawn(base, number, texts), texts)[:, 2], 0.0)
    return found


def are_rings(shown: Images) -> list[bool]:
    """Whether one object, and that a ring, is in each picture: its silhouette's box has the ring's shape."""
    from scipy import ndimage

    found = []
    for there in _apart(shown):
        labels, count = ndimage.label(there, np.ones((3, 3)))
        boxes = ndimage.find_objects(labels)
        found.append(count == 1 and _is_ring(there[boxes[0]]))
    return found


def _apart(shown: Images) -> np.ndarray:
    """Pixels nearer to the object's colour than to the background's, which is that of most of the border."""
    border = np.concatenate([shown[:, 0], shown[:, -1], shown[:, :, 0], shown[:, :, -1]], axis=1)
    ground = np.median(border, axis=1)[:, None, None]
    distance = np.abs(shown.astype(float) - ground).max(axis=-1)
    return distance > distance.max(axis=(1, 2), keepdims=True) / 2


def _is_ring(there: np.ndarray) -> bool:
    rows, columns = there.shape
    if max(rows, columns) > 1.4 * min(rows, columns) or min(rows, columns) < 5:
        return False
    side = max(rows, columns)
    square = np.asarray(Image.fromarray(there).resize((side, side), Image.Resampling.NEAREST))
    own, *others = (
        overlaps(square[None], (cover >= 0.5)[None])[0]
        for cover in (ring(side), *(template(shape, side) for shape in range(len(SHAPES))))
    )
    return own >= LEAST and own > max(others)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, text) in enumerate(zip(*pictures(), strict=True)):
        Image.fromarray(image).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
