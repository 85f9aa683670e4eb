"""Features of a pair of encoders, of images and captions, that is trained on the reference's own pairs.

For data with captions and no downloaded network: the features of an image lie near those of captions that
fit it. They depend on the reference, so numbers are comparable only between models of one data set. A fifth
of the reference is held out: half of it decides when training ends, and the other half judges the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.rng import seeded
from sfumato.core.seeds import derive
from sfumato.errors import DataError
from sfumato.evaluation.features.contrastive_network import Pair, numbered, tokens, words_of
from sfumato.evaluation.features.contrastive_training import Schedule, recall, train
from sfumato.evaluation.features.extractor import (
    CHUNK,
    Extracted,
    FeatureKind,
    device,
    exact_float32,
    extract_in_chunks,
    one_thread,
    placed,
)
from sfumato.evaluation.features.pixels import scale
from sfumato.evaluation.progress import ProgressCallback, untold
from sfumato.evaluation.references.reference import Captioned, Reference
from sfumato.evaluation.statistics import Float32Array, UInt8Array
from sfumato.evaluation.store import Array, digest, read_arrays, write_arrays

VERSION = 1
"""Part of the cache's key and of the digest: increase it when the networks or their training change."""
NAME = "contrastive"
SMALLEST_SIDE = 8
HELD_OUT_PARTS = 5
LEAST_IMAGES = 100
LOOKED_AT = 2_000
"""Held-out pairs that decide when training ends, at most."""
_ROWS = 512


class ContrastiveOptions(Config):
    """How to train the pair."""

    seen: int = Field(400_000, gt=0, description="Pairs seen in training, at most, repeats counted.")
    patience: int = Field(
        3, ge=1, description="Looks at the held-out pairs without a better score after which training ends."
    )
    batch: int = Field(256, gt=1, description="Pairs per training step, each an alternative to the others.")
    lr: float = Field(1e-3, gt=0, description="Learning rate.")
    base: int = Field(32, gt=0, description="Channels of the first convolution.")
    dim: int = Field(64, gt=0, description="Length of the feature vectors.")
    max_images: int = Field(
        50_000, gt=0, description="Pairs of the reference kept in memory for training and judging, at most."
    )
    seed: int = Field(0, ge=0, description="Seed of weights, order and shifts.")


class ContrastiveExtractor:
    """A trained `Pair`, with its words."""

    name = NAME

    def __init__(self, pair: Pair, words: Sequence[str], facts: Mapping[str, object]) -> None:
        self._pair, self._numbers = pair.eval().requires_grad_(False), numbered(words)
        self.dim = pair.texts.out.out_features
        self.facts: Mapping[str, object] = dict(facts)
        content = hashlib.sha256(f"{NAME} transform {VERSION} {' '.join(words)}".encode())
        for name, value in pair.state_dict().items():
            content.update(name.encode() + value.contiguous().numpy().tobytes())
        self.digest = content.hexdigest()[:16]

    def extract(self, images_NHWC: UInt8Array) -> Extracted:
        """Features [N, dim] of uint8 images of the reference's size."""
        return extract_in_chunks(images_NHWC, self._forward)

    def extract_text(self, captions: Sequence[str]) -> Float32Array:
        """Features [N, dim] of texts; unknown words are all alike."""
        parts: list[Float32Array] = []
        with one_thread(), exact_float32(), torch.inference_mode():
            for start in range(0, len(captions), CHUNK):
                ids_BT = tokens(captions[start : start + CHUNK], self._numbers).to(device())
                parts.append(self._placed.text(ids_BT).float().cpu().numpy())
        return np.concatenate(parts)

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, None]:
        return self._placed.image(scale(images_BCHW)), None

    @property
    def _placed(self) -> Pair:
        pair = placed(self._pair)
        assert isinstance(pair, Pair)
        return pair


class ContrastiveKind:
    """Trains the pair, or loads it from the cache."""

    name = NAME
    classifies = False
    gives_logits = False
    options: type[Config] = ContrastiveOptions

    def problems(self, data: DataSpec) -> list[str]:
        """Images without captions, and small ones."""
        found = []
        if not any(column.kind == "text" for column in data.extra.values()):
            found.append(f"features {NAME} need images with captions, and this data has none: pack them")
        if min(data.height, data.width) < SMALLEST_SIDE:
            found.append(
                f"features {NAME} need images of {SMALLEST_SIDE}x{SMALLEST_SIDE} or more, this data is "
                f"{data.width}x{data.height}"
            )
        return found

    def dimension(self, options: Config, data: DataSpec) -> int:
        """As the options say."""
        assert isinstance(options, ContrastiveOptions)
        return options.dim

    def build(self, reference: Reference, options: Config, cache: Path) -> ContrastiveExtractor:
        """As `train`, without a word."""
        return self.train(reference, options, cache, untold)

    def train(
        self, reference: Reference, options: Config, cache: Path, progress: ProgressCallback
    ) -> ContrastiveExtractor:
        """Trained on the reference, or from the cache. Raises DataError for one without captions."""
        assert isinstance(options, ContrastiveOptions)
        key = digest(NAME, VERSION, reference.digest, options.model_dump())
        path = cache / f"{NAME}-{key}.safetensors"
        arrays, facts = read_arrays(path) or _train(reference, options, path, progress)
        words: list[str] = facts["words"]
        pair = _pair(reference.spec, options, len(words))
        pair.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return ContrastiveExtractor(pair, words, {name: v for name, v in facts.items() if name != "words"})


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Images uint8 [N, C, H, W] and their captions, dealt by a hash of their position."""

    images_NCHW: Tensor
    captions: Sequence[str]
    learnt: Tensor
    looked_at: Tensor
    judged: Tensor


def _train(
    reference: Reference, options: ContrastiveOptions, path: Path, progress: ProgressCallback
) -> tuple[dict[str, Array], dict[str, Any]]:
    pairs = _load(reference, options)
    words = words_of(pairs.captions[row] for row in pairs.learnt.tolist())
    ids_NT = tokens(pairs.captions, numbered(words))
    pair = _pair(reference.spec, options, len(words))
    schedule = Schedule(options.seen, options.patience, options.batch, options.lr, options.seed)

    def part(rows: Tensor) -> tuple[Tensor, Tensor]:
        return pairs.images_NCHW[rows], ids_NT[rows]

    with one_thread():
        trained = train(pair, part(pairs.learnt), part(pairs.looked_at), schedule, progress)
        held_out = recall(pair, *part(pairs.judged))
    facts: dict[str, Any] = {
        "held_out_retrieval": held_out,
        "held_out_images": len(pairs.judged),
        "training_images": len(pairs.learnt),
        "seen": trained.seen,
        "scores": list(trained.scores),
        "words": words,
        "reference": reference.digest,
        "options": options.model_dump(),
    }
    arrays = {name: value.contiguous().numpy() for name, value in pair.state_dict().items()}
    write_arrays(path, arrays, facts)
    return arrays, facts


def _pair(spec: DataSpec, options: ContrastiveOptions, words: int) -> Pair:
    with seeded(options.seed, "contrastive-weights"):
        return Pair(spec.channels, spec.height, spec.width, words=words, base=options.base, dim=options.dim)


def _load(reference: Reference, options: ContrastiveOptions) -> _Pairs:
    """The reference's pairs, at most `max_images`."""
    if not (isinstance(reference, Captioned) and reference.captioned):
        raise DataError(f"features {NAME} need captions, but the reference has none: choose other features")
    keep_share = options.max_images / reference.size
    images: list[UInt8Array] = []
    captions: list[str] = []
    positions: list[int] = []
    for part in reference.parts(_ROWS):
        block_NHWC, _ = reference.read(part.start, part.stop)
        texts = reference.captions(part.start, part.stop)
        kept = [
            row
            for row in range(len(block_NHWC))
            if keep_share >= 1 or derive("kept", part.start + row) < keep_share * 2**63
        ]
        images.append(block_NHWC[kept])
        captions += [texts[row] for row in kept]
        positions += [part.start + row for row in kept]
    held_N = torch.tensor([derive("held-out", position) % HELD_OUT_PARTS == 0 for position in positions])
    if len(positions) < LEAST_IMAGES or held_N.sum() < 2:
        raise DataError(
            f"features {NAME} need {LEAST_IMAGES} images with captions or more, to train and hold some out, "
            f"got {len(positions)}: give more reference images"
        )
    held = held_N.nonzero().flatten()
    look = min(LOOKED_AT, len(held) // 2)
    images_NCHW = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).contiguous()
    return _Pairs(images_NCHW, captions, (~held_N).nonzero().flatten(), held[:look], held[look:])


FEATURES: tuple[FeatureKind, ...] = (ContrastiveKind(),)
