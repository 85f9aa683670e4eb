"""Every block that an evaluation needs, and the place where finished ones are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfumato.evaluation.blocks import BITS, PAIR, PATH, BlockStore, Task
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.labels import stratified_labels
from sfumato.evaluation.metrics.metric import FeatureSet
from sfumato.evaluation.metrics.path_length import Ruler
from sfumato.evaluation.reference import Reference
from sfumato.evaluation.reference_features import class_counts
from sfumato.evaluation.selection import Selection
from sfumato.evaluation.source import GivesLikelihood, SampleSource
from sfumato.evaluation.statistics import Float64Array, Int64Array
from sfumato.evaluation.store import digest


@dataclass(frozen=True, slots=True)
class Plan:
    """`tasks` are the blocks of images, `likelihood` those of bits per dimension of reference images, `paths`
    those of steps in the model's latents."""

    tasks: Sequence[Task]
    likelihood: Sequence[Task]
    paths: Sequence[Task]
    store: BlockStore
    block: int
    samples: int
    real_images: int
    pairs: int
    bits_of: str
    """The variable that the model's likelihood is of; empty where it has none."""
    label_N: Int64Array | None
    """The classes asked for [samples]; None where the model takes none, or the images bring their own."""

    @property
    def labels_digest(self) -> str:
        return digest(None if self.label_N is None else self.label_N.tolist())

    def bits(self) -> Float64Array | None:
        """Bits per dimension of the first reference images, or None where no metric asked for them."""
        return self.store.arrays(self.likelihood, BITS, self.real_images) if self.likelihood else None

    def path_lengths(self) -> Float64Array | None:
        """The length of every step, or None where no metric asked for them."""
        return self.store.arrays(self.paths, PATH, self.pairs) if self.paths else None

    def pair_values(self, names: Iterable[str]) -> dict[str, Float64Array]:
        """The value of every image and its reconstruction, by metric."""
        found = {name: self.store.arrays(self.tasks, f"{PAIR}.{name}", self.samples) for name in names}
        return {name: values for name, values in found.items() if values is not None}

    def cost(self) -> tuple[float, float]:
        """Mean seconds and network passes of one worker for one image."""
        blocks = [self.store.load(task, only="") for task in self.tasks]
        rows = sum(block.rows for block in blocks)
        return sum(b.seconds for b in blocks) / rows, sum(b.evaluations for b in blocks) / len(blocks)


def plan_blocks(
    settings: EvaluateSettings,
    selection: Selection,
    source: SampleSource,
    extractors: Sequence[Extractor],
    real: Mapping[str, FeatureSet],
    reference: Reference,
    ruler: Ruler | None,
    out: Path,
) -> Plan:
    """What has to be made, in the order in which it is put together."""
    samples = settings.samples if source.size is None else min(settings.samples, source.size)
    blocks = -(-samples // source.block)
    asked = source.kind == "samples" and source.conditional
    counts_K = class_counts(next(iter(real.values())), source.spec.num_classes) if asked else None
    if asked and counts_K is None:  # a reference whose images are not there: all classes alike
        counts_K = np.ones(source.spec.num_classes, np.int64)
    pairs = 0 if ruler is None else ruler.settings.path_pairs
    path_blocks = -(-pairs // source.block)
    most = max(blocks, path_blocks) * source.block
    label_N = None if counts_K is None else stratified_labels(counts_K, most)

    def labels(index: int) -> Int64Array | None:
        return None if label_N is None else label_N[index * source.block : (index + 1) * source.block]

    tasks = [
        Task(index, labels(index), selection.needs_images or index * source.block < settings.preview)
        for index in range(blocks)
    ]
    real_images = min(settings.likelihood_images, reference.size) if selection.needs_likelihood else 0
    likelihood = [
        Task(index, None, keep_images=False, kind="bits") for index in range(-(-real_images // source.block))
    ]
    paths = [Task(index, labels(index), keep_images=False, kind="path") for index in range(path_blocks)]
    # All that a block's content depends on: a folder of this name holds blocks of this evaluation alone.
    identity = digest(
        source.digest,
        source.block,
        [extractor.digest for extractor in extractors],
        settings.seed,
        "all" if selection.needs_images else settings.preview,
        None if counts_K is None else counts_K.tolist(),
        sorted(selection.pairs),
        reference.digest if likelihood else None,
        None if ruler is None else ruler.identity,
        selection.needs_captions,
    )
    bits_of = source.likelihood_of if isinstance(source, GivesLikelihood) else ""
    kept = None if label_N is None else label_N[:samples]
    store = BlockStore(out / f"blocks-{identity}")
    return Plan(tasks, likelihood, paths, store, source.block, samples, real_images, pairs, bits_of, kept)
