"""Every block that an evaluation needs, and the folder of finished ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfumato.evaluation.blocks.block import PAIR, Task
from sfumato.evaluation.blocks.store import BlockStore
from sfumato.evaluation.evaluation import Opened
from sfumato.evaluation.metric_inputs import Made, Prepared
from sfumato.evaluation.references.features import class_counts
from sfumato.evaluation.statistics import Float64Array, Int64Array
from sfumato.evaluation.store import digest
from sfumato.evaluation.subjects.labels import stratified_labels


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """`tasks` are the blocks of images, `further` those of inputs with their own `rows`, by the input's
    name.
    """

    tasks: Sequence[Task]
    further: Mapping[str, Sequence[Task]]
    rows: Mapping[str, int]
    store: BlockStore
    block: int
    samples: int
    label_N: Int64Array | None
    """The requested classes [samples]; None if the model takes none, or the images have their own."""

    @property
    def labels_digest(self) -> str:
        return digest(None if self.label_N is None else self.label_N.tolist())

    def made(self, name: str) -> Made:
        """The arrays made for an input."""
        tasks = self.further.get(name, ())
        own = self.store.arrays(tasks, tasks[0].stored_as, self.rows[name]) if tasks else None
        return Made(own, lambda array: self.store.arrays(self.tasks, array, self.samples))

    def pair_values(self, names: Iterable[str]) -> dict[str, Float64Array]:
        """The value of every image and its reconstruction, by metric."""
        found = {name: self.store.arrays(self.tasks, f"{PAIR}.{name}", self.samples) for name in names}
        return {name: values for name, values in found.items() if values is not None}

    def cost(self) -> tuple[float, float]:
        """Mean seconds and network passes of one worker for one image."""
        blocks = [self.store.load(task, only="") for task in self.tasks]
        rows = sum(block.rows for block in blocks)
        return sum(b.seconds for b in blocks) / rows, sum(b.evaluations for b in blocks) / len(blocks)


def plan_blocks(opened: Opened) -> BlockPlan:
    """The blocks to make, in the order in which they are joined."""
    settings, selection, source = opened.evaluation.settings, opened.selection, opened.source
    extractors, real, inputs = opened.extractors, opened.real, opened.inputs
    samples = settings.samples if source.size is None else min(settings.samples, source.size)
    blocks = -(-samples // source.block)
    asked = source.kind == "samples" and source.conditional
    counts_K = class_counts(next(iter(real.values())), source.spec.num_classes) if asked else None
    if asked and counts_K is None:  # a reference without images: all classes equally often
        counts_K = np.ones(source.spec.num_classes, np.int64)
    rows = {name: prepared.rows for name, prepared in inputs.items() if prepared.rows}
    labelled = [-(-number // source.block) for name, number in rows.items() if inputs[name].labelled]
    most = max(blocks, *labelled, 0) * source.block
    label_N = None if counts_K is None else stratified_labels(counts_K, most)

    def labels(index: int) -> Int64Array | None:
        return None if label_N is None else label_N[index * source.block : (index + 1) * source.block]

    tasks = [
        Task(index, labels(index), selection.needs_images or index * source.block < settings.preview)
        for index in range(blocks)
    ]
    further = {
        name: [
            Task(
                index,
                labels(index) if inputs[name].labelled else None,
                keep_images=False,
                kind=name,
                stored_as=inputs[name].stored_as or name,
            )
            for index in range(-(-number // source.block))
        ]
        for name, number in rows.items()
    }
    # All that a block's content depends on: a folder of this name holds only blocks of this evaluation.
    identity = digest(
        source.digest,
        source.block,
        [extractor.digest for extractor in extractors],
        settings.seed,
        "all" if selection.needs_images else settings.preview,
        None if counts_K is None else counts_K.tolist(),
        sorted(selection.pairs),
        *_identities(inputs),
    )
    kept = None if label_N is None else label_N[:samples]
    store = BlockStore(opened.evaluation.blocks_folder / f"blocks-{identity}")
    return BlockPlan(tasks, further, rows, store, source.block, samples, kept)


_ALWAYS = {"likelihood": None, "latent_paths": None, "captions": False}
"""Inputs that have a place in the identity of blocks even if they are not made, and its value then."""


def _identities(inputs: Mapping[str, Prepared]) -> list[object]:
    """The values through which blocks depend on inputs."""
    found = {name: prepared.identity for name, prepared in inputs.items()}
    first = [found.pop(name, absent) for name, absent in _ALWAYS.items()]
    return first + [[name, identity] for name, identity in sorted(found.items()) if identity is not None]
