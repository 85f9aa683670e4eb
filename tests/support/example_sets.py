"""The data sets that the examples learn from, packed from folders as a user has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.folder import FolderSource

SIDE = 8
DIGITS = 192
VIEWS = 128
RADIUS = 0.6
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
U8 = NDArray[np.uint8]


def edges(image_HW: U8) -> U8:
    """Where a pixel differs from its neighbours; a mirrored image has mirrored edges."""
    padded = np.pad(image_HW.astype(np.int64), 1, mode="edge")
    across = np.abs(padded[1:-1, 2:] - padded[1:-1, :-2])
    down = np.abs(padded[2:, 1:-1] - padded[:-2, 1:-1])
    return ((across + down) // 2).astype(np.uint8)


def pack_digits(scratch: Path, folder: Path) -> Path:
    """Digits by class, with their edges as the image `control` and two captions each."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for row in range(DIGITS):
        word = WORDS[digits.target[row]]
        image = np.rint(digits.images[row] * (255 / 16)).astype(np.uint8)
        stem = scratch / word / f"{row:03d}"
        stem.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(stem.with_suffix(".png"))
        Image.fromarray(edges(image)).save(stem.with_suffix(".edges.png"))
        captions = {"captions": [f"the digit {word}", word], "weights": [1, 3]}
        stem.with_suffix(".json").write_text(json.dumps(captions))
    columns = {
        "control": {"kind": "image", "member": "edges.png"},
        "text": {"kind": "text", "field": "captions", "weights": "weights"},
    }
    pack(FolderSource(path=str(scratch), columns=columns), folder, shard_size=64)
    return folder


def pack_views(scratch: Path, folder: Path) -> Path:
    """Views of a ball from cameras all around it, by the half of the world that they are in."""
    rng = np.random.default_rng(0)
    for row in range(VIEWS):
        camera = camera_at(rng.uniform(0, 2 * np.pi), rng.uniform(-0.7, 0.7))
        stem = scratch / ("front" if camera[2, 3] < 0 else "back") / f"{row:03d}"
        stem.parent.mkdir(exist_ok=True)
        Image.fromarray(view_of(camera)).save(stem.with_suffix(".png"))
        stem.with_suffix(".json").write_text(json.dumps({"camera_to_world": camera.tolist()}))
    columns = {"camera": {"kind": "camera", "field": "camera_to_world"}}
    pack(FolderSource(path=str(scratch), columns=columns), folder)
    return folder


def camera_at(around: float, up: float) -> NDArray[np.float64]:
    """A camera [3, 4] at distance 2 from the origin, at which it looks."""
    place = 2 * np.array([np.sin(around) * np.cos(up), np.sin(up), -np.cos(around) * np.cos(up)])
    forward = -place / np.linalg.norm(place)
    right = np.cross(np.array([0.0, 1.0, 0.0]), forward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward, place], axis=1)


def view_of(camera_34: NDArray[np.float64]) -> U8:
    """The ball around the origin, coloured by its surface's direction, black behind: [8, 8, 3]."""
    own = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    y, x = np.meshgrid(own, own, indexing="ij")
    directions = np.stack([x, y, np.ones_like(x)], axis=-1) @ camera_34[:, :3].T
    place = camera_34[:, 3]
    a, b = (directions**2).sum(-1), directions @ place
    under = b**2 - a * (place @ place - RADIUS**2)
    met = place + directions * ((-b - np.sqrt(np.maximum(under, 0))) / a)[..., None]
    colours = np.where(under[..., None] > 0, 0.5 + 0.5 * met / RADIUS, 0.0)
    return np.rint(colours * 255).astype(np.uint8)
