"""Features of a reference by two actors against the network alone, in two bare loops side by side.

The images are 32x32 in colour, packed as PNG files; the features are EfficientNet-Lite0's. The bare side is a
loop of plain torch over images in memory, on one thread in each of two processes that begin together with the
network loaded and warm: no reading, no files, no Ray. The other side is all that an evaluation does: actors
start, read their images from shards and extract; the driver keeps blocks, joins them and writes the cache's
entry. Since actors keep freed memory (`core/allocator.py`), there is a second bare side that does, too.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 32
WORKERS = 2
BATCH = 64


def pictures(count: int) -> np.ndarray:
    """Patches of colour that compress as photographs do, uint8 [N, 32, 32, 3]."""
    small = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return small.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)


def network() -> Any:
    """EfficientNet-Lite0 with its packaged weights."""
    from types import SimpleNamespace

    from sfumato.core.batch import DataSpec
    from sfumato.evaluation.features.efficientnet_lite0 import EfficientNetKind, EfficientNetOptions

    reference: Any = SimpleNamespace(spec=DataSpec(3, SIDE, SIDE))
    return EfficientNetKind().build(reference, EfficientNetOptions(), Path())._network


_met: list[Any] = []


def meet(barrier: Any) -> None:
    """The processes of a pool begin their loops together."""
    _met.append(barrier)


def loop(count: int, keep: bool) -> float:
    """Seconds for so many images in batches, on one thread of this process, which may keep freed memory."""
    import torch

    from sfumato.core.allocator import keep_freed_memory
    from sfumato.evaluation.features.efficientnet_lite0 import transform

    torch.set_num_threads(1)
    if keep:
        keep_freed_memory(of_any_size=True)
    model, chunks = network(), torch.from_numpy(pictures(count)).split(BATCH)

    def forward(images_NHWC: torch.Tensor) -> np.ndarray:
        features = model.extract_features(transform(images_NHWC.permute(0, 3, 1, 2)))
        return features.mean(dim=(2, 3)).numpy()

    with torch.inference_mode():
        forward(chunks[0])
        _met[0].wait()
        start = time.perf_counter()
        for chunk in chunks:
            forward(chunk)
        return time.perf_counter() - start


def bare(count: int, keep: bool) -> float:
    """Seconds for the slower of two processes with half of the images each."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(WORKERS, meet, (context.Barrier(WORKERS),)) as pool:
        return max(pool.starmap(loop, [(count // WORKERS, keep)] * WORKERS, chunksize=1))


def on_actors(root: Path) -> tuple[float, float]:
    """Seconds for the whole of it, and of these until the first block was there."""
    import ray

    from sfumato.evaluation.config import EvaluateSettings
    from sfumato.evaluation.evaluation import Evaluation
    from sfumato.evaluation.references.reference import PackedReference
    from sfumato.evaluation.stage import features_of_reference

    reference, first = PackedReference(root / "data"), []

    def progress(done: int, total: int | None, figures: object = None) -> None:
        if done and not first:
            first.append(time.perf_counter() - start)

    ray.init(
        address="local",
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=str(root / "ray"),
        _node_ip_address="127.0.0.1",
    )
    start = time.perf_counter()
    try:
        features_of_reference(
            Evaluation.of_images(
                EvaluateSettings(features="efficientnet_lite0", actors=WORKERS),
                images=reference,
                reference=reference,
                out=root / "out",
                cache=root / "cache",
                progress=progress,
                phase=lambda part: None,
            )
        )
        return time.perf_counter() - start, first[0]
    finally:
        ray.shutdown()


def compare(count: int) -> tuple[float, dict[str, float]]:
    """Seconds with two actors, and everything that was measured."""
    from sfumato.data.packing.pack import pack

    with tempfile.TemporaryDirectory(prefix="sf-") as folder:
        root = Path(folder)
        np.savez(root / "pictures.npz", images=pictures(count))
        pack(str(root / "pictures.npz"), root / "data")
        plain, keeping = (bare(count, keep) for keep in (False, True))
        seconds, until_first = on_actors(root)
    return seconds, {
        "references": float(count),
        "on_actors_seconds": seconds,
        "until_first_block_seconds": until_first,
        "bare_loops_seconds": plain,
        "bare_loops_that_keep_memory_seconds": keeping,
        "on_actors_over_bare": seconds / plain,
        "on_actors_over_bare_that_keep_memory": seconds / keeping,
        "images_per_second": count / seconds,
    }
