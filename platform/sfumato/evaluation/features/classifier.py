"""Features of a classifier trained on labelled real images, by default the reference itself.

For small grey images, for which ImageNet features mean little, and for labelled data of other kinds where it
is asked for. The features are the output of the layer before the logits. They depend on these images, so
numbers are comparable only between models of one data set. A fifth of the reference is held out: half of it
decides when training ends, and the other half judges the result. `data` names another set of the same kind
of images to learn from, as the training images of a model that is judged on a smaller test set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
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
from sfumato.evaluation.features.classifier_network import Classifier
from sfumato.evaluation.features.classifier_training import Schedule, Trained, accuracy, train
from sfumato.evaluation.features.extractor import (
    Extracted,
    FeatureKind,
    extract_in_chunks,
    one_thread,
    placed,
)
from sfumato.evaluation.features.pixels import scale
from sfumato.evaluation.progress import ProgressCallback, untold
from sfumato.evaluation.references.reference import PackedReference, Reference
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import Array, digest, read_arrays, write_arrays
from sfumato.evaluation.subjects.images import kind_of

VERSION = 2
"""Part of the cache's key and of the digest: increase it when the network or its training changes."""
SMALLEST_SIDE = 8
HELD_OUT_PARTS = 5
LEAST_PER_CLASS = 10
MOST_NAMED = 12
"""Classes in a message."""
LOOKED_AT = 5_000
"""Held-out images that decide when training ends, at most: looking is to cost little."""
LEAST_BETWEEN, MOST_BETWEEN = 4_000, 20_000
"""Bounds on the images between two looks; in between, one epoch."""
LONGEST = 5.5e12
"""Multiplications of all forward passes in training, at most. Part of the cache's key."""
TINY_SIDE, FEW_CLASSES = 16, 50
"""Up to these, half the channels are enough; up to these, 64 features."""
SIDE_BY_SIDE = 4e6
"""Multiplications of a forward pass from which batches are computed in two parts side by side. By the data,
never by the machine: the parts decide the last bits."""


class ClassifierOptions(Config):
    """How to train the classifier. null: by the data."""

    data: str | None = Field(
        None,
        description="Packed data set (folder or URI) of the reference's size and classes to learn from; "
        "null: the reference itself, which makes weak features if it is small.",
    )
    seen: int | None = Field(
        None,
        gt=0,
        description="Images seen in training, repeats counted; null: until the accuracy on held-out images "
        "stops rising, or a bound on the work is reached.",
    )
    patience: int = Field(
        3,
        ge=1,
        description="Looks at the held-out images without a better accuracy after which training ends.",
    )
    batch: int = Field(64, gt=1, description="Images per training step.")
    lr: float = Field(3e-3, gt=0, description="Learning rate.")
    base: int | None = Field(
        None,
        gt=0,
        description="Channels of the first convolution; null: 16 for images of up to 16 pixels, else 32.",
    )
    dim: int | None = Field(
        None,
        gt=0,
        description="Length of the feature vector; null: 64 for up to 50 classes, otherwise 256.",
    )
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
            content.update(name.encode() + value.contiguous().numpy().tobytes())
        self.digest = content.hexdigest()[:16]

    def extract(self, images_NHWC: UInt8Array) -> Extracted:
        """Features [N, dim] and logits [N, classes] of uint8 images of the reference's size."""
        return extract_in_chunks(images_NHWC, self._forward)

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD, logits_BK = placed(self._network)(scale(images_BCHW))
        return features_BD, logits_BK[:, : self._network.classes]


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

    def dimension(self, options: Config, data: DataSpec) -> int:
        """As many features as the options or the classes ask for."""
        assert isinstance(options, ClassifierOptions)
        return options.dim or (64 if data.num_classes <= FEW_CLASSES else 256)

    def build(self, reference: Reference, options: Config, cache: Path) -> ClassifierExtractor:
        """As `train`, without a word."""
        return self.train(reference, options, cache, untold)

    def train(
        self, reference: Reference, options: Config, cache: Path, progress: ProgressCallback
    ) -> ClassifierExtractor:
        """Trained on the reference, or from the cache."""
        assert isinstance(options, ClassifierOptions)
        source = reference if options.data is None else _like(reference.spec, options.data)
        key = digest("classifier", VERSION, LONGEST, source.digest, options.model_dump(exclude={"data"}))
        path = cache / f"classifier-{key}.safetensors"
        stored = read_arrays(path) or _train(source, options, path, progress)
        arrays, facts = stored
        network = _network(reference.spec, options)
        network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        return ClassifierExtractor(network, facts)


def _like(spec: DataSpec, place: str) -> Reference:
    """The packed set at `place`. Raises DataError if its images or classes are others."""
    found = PackedReference(place)
    what = f"feature_options.classifier.data: {place}"
    if found.spec.shape != spec.shape:
        held, wanted = kind_of(found.spec), kind_of(spec)
        raise DataError(f"{what} holds {held} images and the reference {wanted}: name a set of that size")
    if found.spec.classes != spec.classes:
        raise DataError(
            f"{what} has the classes {_some(found.spec.classes)} and the reference {_some(spec.classes)}: "
            "name a set of the same"
        )
    return found


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:MOST_NAMED]) + (" ..." if len(classes) > MOST_NAMED else "") or "of no name"


@dataclass(frozen=True, slots=True)
class _Split:
    """Images uint8 [N, C, H, W] and labels int64 [N] to learn from, to look at meanwhile, and to judge by."""

    learnt: tuple[Tensor, Tensor]
    looked_at: tuple[Tensor, Tensor]
    judged: tuple[Tensor, Tensor]


def _train(
    reference: Reference, options: ClassifierOptions, path: Path, progress: ProgressCallback
) -> tuple[dict[str, Array], dict[str, object]]:
    split = _load(reference, options)
    network = _network(reference.spec, options)
    schedule = _schedule(network, len(split.learnt[1]), options)
    with one_thread():
        trained = train(network, split.learnt, split.looked_at, schedule, progress)
        held_out_accuracy = accuracy(network, *split.judged)
    facts: dict[str, object] = {
        "held_out_accuracy": held_out_accuracy,
        "held_out_images": len(split.judged[1]),
        "training_images": len(split.learnt[1]),
        "seen": trained.seen,
        "accuracies": list(trained.accuracies),
        "ended": _reason(trained, schedule, options),
        "reference": reference.digest,
        "options": options.model_dump(),
    }
    arrays = {name: value.contiguous().numpy() for name, value in network.state_dict().items()}
    write_arrays(path, arrays, facts)
    return arrays, facts


def _schedule(network: Classifier, images: int, options: ClassifierOptions) -> Schedule:
    longest = options.seen or int(LONGEST / network.macs)
    return Schedule(
        longest=longest,
        every=min(MOST_BETWEEN, max(LEAST_BETWEEN, images)) if options.seen is None else longest,
        patience=options.patience,
        batch=options.batch,
        lr=options.lr,
        seed=options.seed,
        replicas=2 if network.macs >= SIDE_BY_SIDE else 1,
    )


def _reason(trained: Trained, schedule: Schedule, options: ClassifierOptions) -> str:
    """Why training ended, for the report."""
    if options.seen is not None:
        return "after `seen` images"
    if trained.seen + options.batch > schedule.longest:
        return f"at the most, {schedule.longest:,} images"
    return "accuracy stopped rising"


def _network(spec: DataSpec, options: ClassifierOptions) -> Classifier:
    tiny = max(spec.height, spec.width) <= TINY_SIDE
    base = options.base or (16 if tiny else 32)
    dim = ClassifierKind().dimension(options, spec)
    with seeded(options.seed, "classifier-weights"):
        return Classifier(spec.channels, spec.height, spec.width, spec.num_classes, base=base, dim=dim)


def _load(reference: Reference, options: ClassifierOptions) -> _Split:
    """The reference's images, at most `max_images`, dealt by a hash of their position: no part follows the
    order of the data."""
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
    held_N = torch.tensor([derive("held-out", position) % HELD_OUT_PARTS == 0 for position in positions])
    least = LEAST_PER_CLASS * reference.spec.num_classes
    if len(positions) < least or held_N.sum() < 2:
        raise DataError(
            f"features classifier needs {least} labelled images or more, to train and to hold some out, "
            f"got {len(positions)}: give more reference images or use evaluate.features=efficientnet_lite0"
        )
    images_NCHW = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).contiguous()
    of_class_N = torch.from_numpy(np.concatenate(labels))
    held = held_N.nonzero().flatten()
    look = min(LOOKED_AT, len(held) // 2)
    parts = (~held_N).nonzero().flatten(), held[:look], held[look:]
    return _Split(*((images_NCHW[rows], of_class_N[rows]) for rows in parts))


FEATURES: tuple[FeatureKind, ...] = (ClassifierKind(),)
