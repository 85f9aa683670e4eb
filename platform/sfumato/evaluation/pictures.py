"""Pictures to complement the numbers: a grid of samples, and samples above their nearest images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sfumato.evaluation.blocks.block import Task
from sfumato.evaluation.blocks.plan import BlockPlan
from sfumato.evaluation.blocks.store import BlockStore
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.neighbours.sets import nearest_reference
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import write_bytes
from sfumato.provenance.door import Door
from sfumato.sampling.grid import image_grid

PREVIEW = "preview.png"
NEIGHBOURS = "neighbours.png"
COLUMNS = 12


def write_preview(store: BlockStore, tasks: Sequence[Task], num: int, out: Path, door: Door) -> str | None:
    """A grid of the first `num` images, which leave by `door`; its file name."""
    if num == 0:
        return None
    images, _ = door.pixels(np.concatenate(list(store.images(tasks, num))))
    _save(images, None, out / PREVIEW, door)
    return PREVIEW


def write_neighbours(
    plan: BlockPlan,
    num: int,
    generated: FeatureSet,
    real: FeatureSet,
    reference: Reference,
    options: MetricOptions,
    out: Path,
    door: Door,
) -> str | None:
    """Of the first `num` images, the twelve nearest to a reference image, each above that image.

    Nearest by Euclidean distance of the features, the closest pair first: copies of training images
    show up here. The samples leave by `door`.
    """
    if num == 0 or len(real.embedding_ND) == 0:
        return None
    near = nearest_reference(
        real, generated if num == len(generated) else generated.take(np.arange(num)), options
    )
    chosen = np.argsort(near.squared_Nk[:, 0], kind="stable")[:COLUMNS]
    images, _ = door.pixels(_rows(plan.store.images(plan.tasks, num), chosen))
    originals = [reference.read(int(i), int(i) + 1)[0] for i in near.index_Nk[chosen, 0]]
    _save(np.concatenate([images, *originals]), len(chosen), out / NEIGHBOURS, door)
    return NEIGHBOURS


def _rows(blocks: Iterator[UInt8Array], rows_N: Int64Array) -> UInt8Array:
    """Some images, in the requested order, of a set that comes a block at a time."""
    found: dict[int, UInt8Array] = {}
    first = 0
    for block in blocks:
        inside = rows_N[(rows_N >= first) & (rows_N < first + len(block))]
        found |= {row: block[row - first] for row in inside.tolist()}
        first += len(block)
    return np.stack([found[row] for row in rows_N.tolist()])


def _save(images_NHWC: UInt8Array, columns: int | None, path: Path, door: Door) -> None:
    write_bytes(path, door.file(door.sheet(image_grid(images_NHWC, columns=columns))))
