"""The whole evaluation stage against its unavoidable part, generating images and extracting their features.

Both run on the digits' diffusion model, untrained, which takes as long as a trained one. The bare side is a
loop over the same blocks that writes nothing and computes nothing from the features: in one process on one
thread against the stage in this process, and in two processes against the stage with two Ray actors. The
classifier and the reference's features lie in the cache on both sides, as in every evaluation after a data
set's first.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL: dict[str, Any] = {
    "network": {"channels": [32, 64], "layers_per_block": 1, "time_conditioning": "scale_shift"},
    "objective": {"prediction": "v", "schedule": "cosine", "timesteps": 1000, "label_dropout": 0.1},
    "sampling": {"sampler": "dpmsolver++", "steps": 15, "guidance": 1.25},
}
"""The `model` of pipelines/digits/ddpm.yaml."""
WORKERS = 2


def prepare(root: Path) -> None:
    """Packed digits, a model folder, and a cache with the classifier and the reference's features."""
    from sfumato.core.progress import Progress
    from sfumato.core.rng import seeded
    from sfumato.data.packing.pack import pack
    from sfumato.data.packing.sources.digits import DigitsSource
    from sfumato.families.diffusion.config import DiffusionConfig
    from sfumato.sampling.model_folder import save_model_folder

    manifest = pack(DigitsSource(), root / "data").manifest
    config = DiffusionConfig.model_validate(MODEL)
    family = config.build(manifest.spec)
    nets = {}
    for name in family.samplers:
        source = getattr(family.nets[name], "source", name)
        with seeded(0, source):
            nets[name] = family.nets[source].build().state_dict()
    save_model_folder(root / "model", config, manifest.spec, nets, name="digits", progress=Progress.at(0))
    stage(root, 64, actors=0)


def stage(root: Path, samples: int, actors: int) -> tuple[float, float]:
    """Seconds of a whole evaluation, and of these until the first block was there."""
    from sfumato.evaluation.config import EvaluateSettings
    from sfumato.evaluation.evaluation import Evaluation
    from sfumato.evaluation.references.reference import PackedReference
    from sfumato.evaluation.stage import evaluate

    first: list[float] = []
    start = time.perf_counter()

    def progress(done: int, total: int | None, figures: object = None) -> None:
        if done and not first:
            first.append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory(dir=root) as out:
        evaluate(
            Evaluation.of_model(
                EvaluateSettings(samples=samples, actors=actors),
                model_folder=root / "model",
                reference=PackedReference(root / "data"),
                out=Path(out),
                cache=root / "cache",
                progress=progress,
            )
        )
        return time.perf_counter() - start, first[0]


_loaded: dict[Path, Any] = {}


def bare(root: Path, blocks: range) -> float:
    """Seconds to generate these blocks and extract their features, the models loaded before."""
    import torch

    from sfumato.evaluation.config import EvaluateSettings
    from sfumato.evaluation.references.reference import PackedReference
    from sfumato.sampling.generator import Generator
    from sfumato.sampling.pixels import to_uint8

    torch.set_num_threads(1)
    if root not in _loaded:
        reference = PackedReference(root / "data")
        chosen = EvaluateSettings().select(reference.spec, conditional=True)
        extractors = [kind.build(reference, o, root / "cache") for kind, o in chosen.features.items()]
        _loaded[root] = Generator.load(root / "model"), extractors
    generator, extractors = _loaded[root]
    options = generator.options()
    start = time.perf_counter()
    for index in blocks:
        first = index * generator.block
        conditions = generator.conditions_of({}, range(first, first + generator.block))
        images = generator.sample_block(first, seed=0, conditions=conditions, options=options)
        for extractor in extractors:
            extractor.extract(to_uint8(images))
    return time.perf_counter() - start


def bare_in_processes(root: Path, blocks: int) -> float:
    """Seconds for the slower of two processes with half of the blocks each, which begin together."""
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool.starmap(bare, [(root, range(1))] * WORKERS, chunksize=1)
        shares = [(root, range(worker, blocks, WORKERS)) for worker in range(WORKERS)]
        return max(pool.starmap(bare, shares, chunksize=1))


def compare(samples: int, repeats: int = 2) -> tuple[float, dict[str, float]]:
    """Seconds of the stage with two actors, and everything that was measured."""
    import ray

    with tempfile.TemporaryDirectory(prefix="sf-") as folder:
        root = Path(folder)
        prepare(root)
        blocks, fewer = -(-samples // 64), -(-samples // 64 // 4)
        bare(root, range(1))
        pairs = [(stage(root, 64 * fewer, 0)[0], bare(root, range(fewer))) for _ in range(repeats)]
        alone, loop = (min(pair[side] for pair in pairs) for side in (0, 1))
        processes = bare_in_processes(root, blocks)
        ray.init(
            address="local",
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=str(root / "ray"),
            _node_ip_address="127.0.0.1",
        )
        try:
            seconds, until_first = stage(root, 64 * blocks, WORKERS)
        finally:
            ray.shutdown()
    return seconds, {
        "samples_in_process": 64 * fewer,
        "stage_in_process_seconds": alone,
        "bare_loop_seconds": loop,
        "in_process_over_bare": alone / loop,
        "samples_on_actors": 64 * blocks,
        "stage_on_actors_seconds": seconds,
        "until_first_block_seconds": until_first,
        "bare_processes_seconds": processes,
        "on_actors_over_bare": seconds / processes,
        "cores": float(len(os.sched_getaffinity(0))),
    }
