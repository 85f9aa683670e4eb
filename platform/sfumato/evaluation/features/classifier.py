"""Features of a small classifier trained on the labelled reference itself.

For machines without downloads and for small or unusual images, for which ImageNet features mean little. The
features are the output of the layer before the logits. They depend on the reference, so numbers are
comparable only between models of one data set. A fifth of the reference is held out to judge the classifier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.rng import seeded
from sfumato.core.seeds import derive
from sfumato.errors import DataError
from sfumato.evaluation.features.extractor import (
    Extracted,
    FeatureKind,
    extract_in_chunks,
    one_thread,
    placed,
)
from sfumato.evaluation.features.network import Classifier, scale, train
from sfumato.evaluation.reference import Reference
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import Array, digest, read_arrays, write_arrays

VERSION = 1
"""Part of the cache's key: increase it when the network or its training changes."""
SMALLEST_SIDE = 8
HELD_OUT_PARTS = 5
LEAST_PER_CLASS = 10


class ClassifierOptions(Config):
    """How to train the classifier."""

    seen: int = Field(40_000, gt=0, description="Images seen in training, repeats counted.")
    batch: int = Field(64, gt=1, description="Images per training step.")
    lr: float = Field(3e-3, gt=0, description="Highest learning rate.")
    base: int = Field(32, gt=0, multiple_of=8, description="Channels of the first convolution.")
    dim: int = Field(64, gt=0, description="Length of the feature vector.")
    max_images: int = Field(
        50_000, gt=0, description="Reference images kept in memory for training and judging, at most."
    )
    seed: int = Field(0, ge=0, description="Seed of weights, order and shifts.")


class ClassifierExtractor:
    """A trained `Classifier`."""

    name = "classifier"

    def __init__(self, network: Classifier, facts: Mapping[str, object]) -> None:
        self._network = network.eval().requires_grad_(False)
        self.dim = network.embed.out_features
        self.facts: Mapping[str, object] = dict(facts)
        content = hashlib.sha256(f"classifier transform {VERSION}".encode())
        for name, value in network.state_dict().items():
            content.update(name.encode() + value.numpy().tobytes())
        self.digest = content.hexdigest()[:16]

    def extract(self, images_NHWC: UInt8Array) -> Extracted:
        """Features [N, dim] and logits [N, classes] of uint8 images of the reference's size."""
        return extract_in_chunks(images_NHWC, self._forward)

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD, logits_BK = placed(self._network)(scale(images_BCHW))
        return features_BD, logits_BK


class ClassifierKind:
    """Trains the classifier, or loads it from the cache."""

    name = "classifier"
    classifies = True
    gives_logits = True
    options: type[Config] = ClassifierOptions

    def problems(self, data: DataSpec) -> list[str]:
        found = []
        if data.num_classes < 2:
            found.append(
                f"features classifier needs data with 2 or more classes, this data has {data.num_classes}: "
                "use evaluate.features=efficientnet_lite0"
            )
        if min(data.height, data.width) < SMALLEST_SIDE:
            found.append(
                f"features classifier needs images of {SMALLEST_SIDE}x{SMALLEST_SIDE} or more, this data is "
                f"{data.width}x{data.height}"
            )
        return found

    def build(self, reference: Reference, options: Config, cache: Path) -> ClassifierExtractor:
        assert isinstance(options, ClassifierOptions)
        key = digest("classifier", VERSION, reference.digest, options.model_dump())
        path = cache / f"classifier-{key}.safetensors"
        stored = read_arrays(path) or self._train(reference, options, path)
        arrays, facts = stored
        network = _network(reference.spec, options)
        network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return ClassifierExtractor(network, facts)

    def _train(
        self, reference: Reference, options: ClassifierOptions, path: Path
    ) -> tuple[dict[str, Array], dict[str, object]]:
        images_NCHW, labels_N, held_out_N = _load(reference, options)
        with one_thread():
            network = _network(reference.spec, options)
            train(
                network,
                images_NCHW[~held_out_N],
                labels_N[~held_out_N],
                seen=options.seen,
                batch=options.batch,
                lr=options.lr,
                seed=options.seed,
            )
            accuracy = _accuracy(network, images_NCHW[held_out_N], labels_N[held_out_N])
        facts: dict[str, object] = {
            "held_out_accuracy": accuracy,
            "held_out_images": int(held_out_N.sum()),
            "training_images": int((~held_out_N).sum()),
            "reference": reference.digest,
            "options": options.model_dump(),
        }
        arrays = {name: value.numpy() for name, value in network.state_dict().items()}
        write_arrays(path, arrays, facts)
        return arrays, facts


def _network(spec: DataSpec, options: ClassifierOptions) -> Classifier:
    with seeded(options.seed, "classifier-weights"):
        return Classifier(
            spec.channels, spec.height, spec.width, spec.num_classes, base=options.base, dim=options.dim
        )


def _load(reference: Reference, options: ClassifierOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Images [N, C, H, W] uint8, labels [N] int64 and which rows are held out, at most `max_images`.

    Rows are chosen and held out by a hash of their position, so neither follows the order of the data.
    """
    keep_share = options.max_images / reference.size
    images: list[UInt8Array] = []
    labels: list[Int64Array] = []
    positions: list[int] = []
    first = 0
    for block_NHWC, label_N in reference.blocks():
        if label_N is None:
            raise DataError("features classifier needs labels, but the reference has none")
        kept = [
            row
            for row in range(len(block_NHWC))
            if keep_share >= 1 or derive("kept", first + row) < keep_share * 2**63
        ]
        images.append(block_NHWC[kept])
        labels.append(label_N[kept])
        positions += [first + row for row in kept]
        first += len(block_NHWC)
    held_out_N = torch.tensor([derive("held-out", position) % HELD_OUT_PARTS == 0 for position in positions])
    least = LEAST_PER_CLASS * reference.spec.num_classes
    if len(positions) < least or not held_out_N.any():
        raise DataError(
            f"features classifier needs {least} labelled images or more, to train and to hold some out, "
            f"got {len(positions)}: give more reference images or use evaluate.features=efficientnet_lite0"
        )
    images_NHWC = torch.from_numpy(np.concatenate(images))
    return images_NHWC.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.concatenate(labels)), held_out_N


def _accuracy(network: Classifier, images_NCHW: Tensor, labels_N: Tensor) -> float:
    images_NHWC: UInt8Array = images_NCHW.permute(0, 2, 3, 1).numpy()
    logits_NK = ClassifierExtractor(network, {}).extract(images_NHWC).logits_NK
    assert logits_NK is not None
    return float((logits_NK.argmax(axis=1) == labels_N.numpy()).mean())


FEATURES: tuple[FeatureKind, ...] = (ClassifierKind(),)
