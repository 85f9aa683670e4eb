"""Telling generated images from real ones: a small network for each source, judged on all of them.

Every detector learns real images against the samples of one source, or of all, and scores images that it has
not learnt from: the real ones of the other half, and samples of every source. The matrix of areas under the
ROC curve says whether what a detector has learnt about one family holds for another. The network is that of
the classification score, trained from random weights on 8-bit pixels, shifted at random.

Real images that were stored lossily betray themselves by that: pack them like the samples, without loss, or
the figures measure the codec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sfumato.core.rng import seeded
from sfumato.core.seeds import derive
from sfumato.errors import CheckpointError, DataError
from sfumato.evaluation.features.extractor import one_thread
from sfumato.evaluation.features.pixels import scale
from sfumato.evaluation.intervals.roc import Area, area
from sfumato.evaluation.score_network import ScoreNetwork, train
from sfumato.evaluation.statistics import Float64Array, UInt8Array

ALL = "all"
"""The detector that learns from the samples of every source, where there are several."""
LEAST = 20
"""Images of each source."""
CARD, WEIGHTS = "detector.json", "detector.safetensors"
_CHANNELS, _FEATURES, _BATCH, _RATE = 32, 64, 64, 3e-3
_AT_ONCE = 256


@dataclass(frozen=True)
class Detector:
    """A trained network of images uint8 [H, W, C]."""

    network: ScoreNetwork
    shape: tuple[int, int, int]
    """(H, W, C)."""

    @classmethod
    def of(cls, real_NHWC: UInt8Array, made_MHWC: UInt8Array, *, seen: int, seed: int) -> Self:
        """Trained to tell these sets apart, each drawn equally often. Deterministic in its arguments."""
        height, width, channels = real_NHWC.shape[1:]
        rows = max(len(real_NHWC), len(made_MHWC))
        images = np.concatenate([np.resize(np.arange(len(x)), rows) for x in (real_NHWC, made_MHWC)])
        both = np.concatenate([real_NHWC[images[:rows]], made_MHWC[images[rows:]]])
        kinds = torch.arange(2).repeat_interleave(rows)
        with one_thread():
            with seeded(seed, "detector-weights"):
                network = ScoreNetwork(channels, height, width, 2, base=_CHANNELS, dim=_FEATURES)
            train(network, _channels_first(both), kinds, seen=seen, batch=_BATCH, lr=_RATE, seed=seed)
        return cls(network.requires_grad_(False), (height, width, channels))

    def scores(self, images_NHWC: UInt8Array) -> Float64Array:
        """Log odds [N] of being generated. Raises DataError for images of another size."""
        if images_NHWC.shape[1:] != self.shape:
            raise DataError(
                f"the detector takes images of {_size(self.shape)}, got {_size(images_NHWC.shape[1:])}: "
                "resize or pack them alike"
            )
        with one_thread(), torch.inference_mode():
            parts = [
                self.network(scale(_channels_first(images_NHWC[first : first + _AT_ONCE])))[1]
                for first in range(0, len(images_NHWC), _AT_ONCE)
            ]
        logits_N2 = torch.cat(parts).double().numpy()
        found: Float64Array = logits_N2[:, 1] - logits_N2[:, 0]
        return found

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write its weights as safetensors, and what it is as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.network.state_dict(), folder / WEIGHTS)
        card = {"format": 1, "shape": list(self.shape), **about}
        (folder / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises CheckpointError for a folder that holds no detector."""
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            height, width, channels = (int(side) for side in card["shape"])
            network = ScoreNetwork(channels, height, width, 2, base=_CHANNELS, dim=_FEATURES)
            network.load_state_dict(load_file(folder / WEIGHTS))
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder}: no {CARD} and {WEIGHTS} there: train a detector first"
            ) from None
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{folder}: the detector is damaged ({reason}): train it again") from None
        return cls(network.eval().requires_grad_(False), (height, width, channels))


@dataclass(frozen=True, slots=True)
class Matrix:
    """Areas by what was learnt from and what was judged, and the detector of all sources."""

    areas: Mapping[str, Mapping[str, Area]]
    detector: Detector


def matrix(real_NHWC: UInt8Array, made: Mapping[str, UInt8Array], *, seen: int, seed: int) -> Matrix:
    """A detector for each source, and all of them judged on all sources.

    Half of the images of each, chosen by the seed, are learnt from, the other half is judged.
    Raises DataError for too few images or other sizes.
    """
    for name, images in {"the real images": real_NHWC, **made}.items():
        if len(images) < 2 * LEAST:
            raise DataError(f"{name}: {len(images)} images, a detector needs {2 * LEAST} of each kind")
        if images.shape[1:] != real_NHWC.shape[1:]:
            raise DataError(
                f"{name} are {_size(images.shape[1:])}, the real images {_size(real_NHWC.shape[1:])}: "
                "give real images of the same size and channels"
            )
    learnt, judged = _halves(real_NHWC, seed, "real")
    halves = {name: _halves(images, seed, name) for name, images in made.items()}
    learning = {name: halves[name][0] for name in made}
    if len(made) > 1:
        learning[ALL] = np.concatenate([halves[name][0] for name in made])
    areas: dict[str, dict[str, Area]] = {}
    for name, images in learning.items():
        detector = Detector.of(learnt, images, seen=seen, seed=derive(seed, "detector", name) % 2**31)
        real_N = detector.scores(judged)
        areas[name] = {other: area(detector.scores(halves[other][1]), real_N) for other in made}
    return Matrix(areas, detector)


def _halves(images: UInt8Array, seed: int, name: str) -> tuple[UInt8Array, UInt8Array]:
    order = np.random.default_rng(derive(seed, "halves", name)).permutation(len(images))
    middle = len(images) // 2
    return images[order[:middle]], images[order[middle:]]


def _channels_first(images_NHWC: UInt8Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)))


def _size(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width}x{height} with {channels} channel{'s' * (channels > 1)}"
