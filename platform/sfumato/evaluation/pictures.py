"""What a person looks at beside the numbers: a grid of samples, and samples above their nearest images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sfumato.evaluation.blocks import BlockStore, Task
from sfumato.evaluation.metrics.metric import FeatureSet
from sfumato.evaluation.reference import Reference
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import write_bytes
from sfumato.sampling.grid import image_grid

PREVIEW = "preview.png"
NEIGHBOURS = "neighbours.png"
COLUMNS = 12


def write_preview(store: BlockStore, tasks: Sequence[Task], num: int, out: Path) -> str | None:
    """A grid of the first `num` images; its file name."""
    if num == 0:
        return None
    _save(np.concatenate(list(store.images(tasks, num))), None, out / PREVIEW)
    return PREVIEW


def write_neighbours(
    store: BlockStore,
    tasks: Sequence[Task],
    num: int,
    generated: FeatureSet,
    real: FeatureSet,
    reference: Reference,
    out: Path,
) -> str | None:
    """Of the first `num` images the twelve nearest to a reference image, each above that image.

    Nearest is by Euclidean distance of the features, and the pair that is closest of all comes first: a model
    that copies its training images shows it here.
    """
    if num == 0 or len(real.embedding_ND) == 0:
        return None
    near_N, distance_N = nearest(generated.take(np.arange(num)), real)
    chosen = np.argsort(distance_N, kind="stable")[:COLUMNS]
    images = np.concatenate(list(store.images(tasks, num)))[chosen]
    originals = np.concatenate([reference.read(int(i), int(i) + 1)[0] for i in near_N[chosen]])
    _save(np.concatenate([images, originals]), len(chosen), out / NEIGHBOURS)
    return NEIGHBOURS


def nearest(generated: FeatureSet, real: FeatureSet) -> tuple[Int64Array, np.ndarray]:
    """For every generated image the position [N] of the nearest reference image, and the distance [N]."""
    x_ND = generated.embedding_ND.astype(np.float64)
    best_N = np.full(len(x_ND), np.inf)
    index_N = np.zeros(len(x_ND), np.int64)
    for first in range(0, len(real), 4096):
        y_MD = real.embedding_ND[first : first + 4096].astype(np.float64)
        squared_NM = np.square(x_ND).sum(1)[:, None] + np.square(y_MD).sum(1)[None] - 2 * x_ND @ y_MD.T
        near_N = squared_NM.argmin(1)
        found_N = squared_NM[np.arange(len(x_ND)), near_N]
        better_N = found_N < best_N
        best_N[better_N], index_N[better_N] = found_N[better_N], near_N[better_N] + first
    return index_N, np.sqrt(np.maximum(best_N, 0.0))


def _save(images_NHWC: UInt8Array, columns: int | None, path: Path) -> None:
    buffer = io.BytesIO()
    image_grid(images_NHWC, columns=columns).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
