"""Metrics against their peers on the same features, each in a process of its own, with its own memory.

`make bench-eval` compares precision, recall, density and coverage with `prdc` and torch-fidelity, the Fréchet
distance with scipy's matrix root and torch-fidelity, KID with torch-fidelity, feature extraction with a bare
loop, the whole stage with generating and extracting alone, a reference's features with the network alone, and
one Ray worker with two. Prints a table and, last, one JSON line. Ratios are peer over ours of one run.
ARGS="--rows 2000 --dim 256 --samples 512 --references 2000" gives a quick look.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

K = 5
REPEATS = 3


def features(rows: int, dim: int, seed: int) -> np.ndarray:
    """Correlated, skewed and non-negative, as pooled activations of a network are."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(dim, 64)).astype(np.float32) / 8
    scale = np.random.default_rng(98).uniform(0.2, 1, dim).astype(np.float32)
    x = rng.standard_normal((rows, 64), np.float32) @ mix.T
    for part in np.array_split(x, max(1, rows // 500)):  # views: large temporaries would hide the peaks
        part += 0.5 * rng.standard_normal(part.shape, np.float32) + np.float32(0.05 * seed)
        np.maximum(part, 0, out=part)
        part *= scale
    return x


def timed(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Shortest seconds, and what the last call returned."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return best, result


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Cases: each takes the two sets and gives seconds and values ---------------------------------------------


def four(
    real: np.ndarray, fake: np.ndarray, spread: Any = None, block: int | None = None
) -> dict[str, float]:
    """Ours, from nothing: radii of both sets and all memberships."""
    from sfumato.evaluation.neighbours.balls import memberships
    from sfumato.evaluation.neighbours.cloud import BLOCK
    from sfumato.evaluation.neighbours.nearest import nearest_others
    from sfumato.evaluation.parallel_map import in_process

    how: dict[str, Any] = {"spread": spread or in_process, "block": block or BLOCK}
    radius = [nearest_others(x, K, **how).squared_Nk[:, -1] for x in (real, fake)]
    found = memberships(real, fake, radius[0], radius[1], **how)
    return {
        "precision": float((found.balls_of_a_M > 0).mean()),
        "recall": float(found.a_inside_N.mean()),
        "density": float(found.balls_of_a_M.mean() / K),
        "coverage": float(found.a_holds_N.mean()),
    }


def case_ours(real: np.ndarray, fake: np.ndarray, arguments: argparse.Namespace) -> tuple[float, Any]:
    return timed(lambda: four(real, fake, block=arguments.block))


def case_prdc(real: np.ndarray, fake: np.ndarray, arguments: argparse.Namespace) -> tuple[float, Any]:
    from prdc import compute_prdc

    seconds, found = timed(lambda: compute_prdc(real, fake, nearest_k=K))
    return seconds, {name: float(value) for name, value in found.items()}


def case_fidelity(real: np.ndarray, fake: np.ndarray, arguments: argparse.Namespace) -> tuple[float, Any]:
    import torch
    from fidelity import calculate_precision_recall_full

    seconds, found = timed(
        lambda: calculate_precision_recall_full(torch.from_numpy(fake), torch.from_numpy(real), K)
    )
    return seconds, {"precision": found[0], "recall": found[1]}


def case_ray(real: np.ndarray, fake: np.ndarray, arguments: argparse.Namespace) -> tuple[float, Any]:
    """`arguments.workers` Ray tasks at a time, one thread each; the best of runs with all workers started."""
    import ray

    from sfumato.evaluation.parallel_map import OnRay

    folder = tempfile.mkdtemp(prefix="sf-")
    ray.init(
        address="local",
        num_cpus=arguments.workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=2 * 2**30,
        _temp_dir=folder,
        _node_ip_address="127.0.0.1",
    )
    block = min(1024, -(-len(real) // 4))
    # The first run also waits until every worker has imported torch, and may end before the last has.
    result = timed(lambda: four(real, fake, OnRay(arguments.workers), block), REPEATS)
    ray.shutdown()
    return result


def case_frechet(real: np.ndarray, fake: np.ndarray, arguments: argparse.Namespace) -> tuple[float, Any]:
    import scipy.linalg
    from fidelity import fid_statistics_to_metric

    from sfumato.evaluation.metrics.frechet import frechet_distance
    from sfumato.evaluation.statistics import Moments

    a, b = Moments.of(real), Moments.of(fake)
    s_a, s_b = a.covariance_DD, b.covariance_DD

    def by_scipy() -> float:
        root = scipy.linalg.sqrtm(s_a @ s_b).real
        return float(
            np.square(a.mean_D - b.mean_D).sum() + np.trace(s_a) + np.trace(s_b) - 2 * np.trace(root)
        )

    def by_fidelity() -> float:
        one, two = ({"mu": m.mean_D, "sigma": s} for m, s in ((a, s_a), (b, s_b)))
        return float(fid_statistics_to_metric(one, two, False)["frechet_inception_distance"])

    ours, value = timed(lambda: frechet_distance(a, b), REPEATS)
    scipys, expected = timed(by_scipy)
    fidelitys, other = timed(by_fidelity)
    return ours, {
        "value": value,
        "scipy_seconds": scipys,
        "fidelity_seconds": fidelitys,
        "relative_difference_scipy": abs(value - expected) / abs(expected),
        "relative_difference_fidelity": abs(value - other) / abs(other),
    }


def case_kid(real: np.ndarray, fake: np.ndarray, arguments: argparse.Namespace) -> tuple[float, Any]:
    """With the estimate on all samples, which torch-fidelity has not, and without."""
    import torch
    from fidelity import kid_features_to_metric

    from sfumato.evaluation.metrics.kid import subset_distances

    size, subsets = min(1000, len(real)), 100
    ours, (found, _) = timed(lambda: subset_distances(fake, real, subsets=subsets, size=size, seed=2020))
    without, _ = timed(
        lambda: subset_distances(fake, real, subsets=subsets, size=size, seed=2020, all_samples=False)
    )
    theirs, expected = timed(
        lambda: kid_features_to_metric(
            torch.from_numpy(fake),
            torch.from_numpy(real),
            kid_subsets=subsets,
            kid_subset_size=size,
            rng_seed=2020,
            verbose=False,
        )
    )
    value = expected["kernel_inception_distance_mean"]
    return ours, {
        "value": float(found.mean()),
        "subsets_alone_seconds": without,
        "fidelity_seconds": theirs,
        "relative_difference_fidelity": abs(float(found.mean()) - value) / abs(value),
    }


def case_extraction(real: np.ndarray, fake: np.ndarray, arguments: argparse.Namespace) -> tuple[float, Any]:
    """The extractor against the same network in a bare loop, in the same batches on one thread."""
    import torch

    from sfumato.core.rng import seeded
    from sfumato.evaluation.features.extractor import CHUNK
    from sfumato.evaluation.features.inception import InceptionExtractor
    from sfumato.evaluation.features.inception_network import SIDE, InceptionV3
    from sfumato.evaluation.features.resize import tensorflow_bilinear

    with seeded(0):
        network = InceptionV3().eval().requires_grad_(False)
    extractor = InceptionExtractor(network, "tensorflow", "random")
    images = np.random.default_rng(0).integers(0, 256, (2 * CHUNK, 64, 64, 3), dtype=np.uint8)

    def bare() -> list[torch.Tensor]:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return [
                network((tensorflow_bilinear(part.permute(0, 3, 1, 2).float(), SIDE) - 128) / 128)[0]
                for part in torch.from_numpy(images).split(CHUNK)
            ]

    extractor.extract(images[:8])
    pairs = [(timed(lambda: extractor.extract(images))[0], timed(bare)[0]) for _ in range(2)]
    ours, theirs = (min(pair[side] for pair in pairs) for side in (0, 1))
    return ours, {"bare_seconds": theirs, "images": len(images)}


def case_stage(real: np.ndarray, fake: np.ndarray, arguments: argparse.Namespace) -> tuple[float, Any]:
    """`arguments.samples` images on two actors, a quarter of them in one process; see evaluation_stage.py."""
    from evaluation_stage import compare

    return compare(arguments.samples)


def case_references(real: np.ndarray, fake: np.ndarray, arguments: argparse.Namespace) -> tuple[float, Any]:
    """`arguments.references` real images on two actors; see reference_extraction.py."""
    from reference_extraction import compare

    return compare(arguments.references)


CASES = {
    name.removeprefix("case_"): work for name, work in list(globals().items()) if name.startswith("case_")
}


def run_case(arguments: argparse.Namespace) -> None:
    """In a process of its own: one JSON line with seconds, peak memory and values."""
    if arguments.case not in ("prdc",):
        import torch

        torch.set_num_threads(arguments.threads)
    real, fake = (features(arguments.rows, arguments.dim, seed) for seed in (0, 1))
    before = peak_mib()
    seconds, values = CASES[arguments.case](real, fake, arguments)
    print(json.dumps({"seconds": seconds, "start_mib": before, "peak_mib": peak_mib(), "values": values}))


def measure(arguments: argparse.Namespace, case: str, **changes: int) -> dict[str, Any]:
    settings = {"rows": arguments.rows, "dim": arguments.dim, "threads": arguments.threads, **changes}
    command = [sys.executable, __file__, "--case", case]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    threads = str(settings["threads"])
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"case {case} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{case:>11} {settings} {result['seconds']:8.2f} s, peak {result['peak_mib']:7.0f} MiB", flush=True)
    return result


def extrapolated(seconds: float, rows: int, real: int, fake: int) -> float:
    """Pairs decide: half of each set's own, since distances are symmetric, and all across."""
    return seconds * (real**2 / 2 + fake**2 / 2 + real * fake) / (2 * rows**2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--block", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--samples", type=int, default=8_192, help="Of the whole stage.")
    parser.add_argument("--references", type=int, default=50_000, help="Real images whose features are made.")
    arguments = parser.parse_args()
    if arguments.case:
        run_case(arguments)
        return
    ours = min((measure(arguments, "ours") for _ in range(2)), key=lambda found: found["seconds"])
    small_block = measure(arguments, "ours", block=512)
    half = measure(arguments, "ours", rows=arguments.rows // 2)
    fidelity = measure(arguments, "fidelity")
    prdc = measure(arguments, "prdc")
    ray = [measure(arguments, "ray", workers=workers) for workers in (1, 2)]
    frechet = measure(arguments, "frechet")
    kids = {rows: measure(arguments, "kid", rows=rows) for rows in (arguments.rows, arguments.rows // 2)}
    extraction = measure(arguments, "extraction", rows=10)
    stage = measure(arguments, "stage", rows=10, samples=arguments.samples, threads=1)
    references = measure(arguments, "references", rows=10, references=arguments.references, threads=1)
    values = frechet["values"]
    report = {
        "benchmark": "evaluation_metrics",
        "rows": arguments.rows,
        "dim": arguments.dim,
        "threads": arguments.threads,
        "prdc": {
            "ours_seconds": ours["seconds"],
            "prdc_over_ours": prdc["seconds"] / ours["seconds"],
            "fidelity_over_ours": fidelity["seconds"] / ours["seconds"],
            "ours_peak_mib": ours["peak_mib"],
            "prdc_peak_mib": prdc["peak_mib"],
            "fidelity_peak_mib": fidelity["peak_mib"],
            "peak_ours_over_prdc": ours["peak_mib"] / prdc["peak_mib"],
            "above_features_mib": {
                "block_1024": ours["peak_mib"] - ours["start_mib"],
                "block_512": small_block["peak_mib"] - small_block["start_mib"],
                "block_1024_half_the_rows": half["peak_mib"] - half["start_mib"],
                "prdc": prdc["peak_mib"] - prdc["start_mib"],
            },
            "ours": ours["values"],
            "prdc": prdc["values"],
            "fidelity": fidelity["values"],
            "two_workers_over_one": ray[0]["seconds"] / ray[1]["seconds"],
            "hours_50k_x_50k": extrapolated(ours["seconds"], arguments.rows, 50_000, 50_000) / 3600,
            "hours_1281167_x_50k": extrapolated(ours["seconds"], arguments.rows, 1_281_167, 50_000) / 3600,
        },
        "frechet": {
            "ours_seconds": frechet["seconds"],
            "scipy_over_ours": values["scipy_seconds"] / frechet["seconds"],
            "fidelity_over_ours": values["fidelity_seconds"] / frechet["seconds"],
            "relative_difference_scipy": values["relative_difference_scipy"],
        },
        "kid": {
            f"{rows}_rows": {
                "ours_seconds": kid["seconds"],
                "fidelity_over_ours": kid["values"]["fidelity_seconds"] / kid["seconds"],
                "fidelity_over_subsets_alone": kid["values"]["fidelity_seconds"]
                / kid["values"]["subsets_alone_seconds"],
                "relative_difference_fidelity": kid["values"]["relative_difference_fidelity"],
            }
            for rows, kid in kids.items()
        },
        "extraction": {
            "images_per_second": extraction["values"]["images"] / extraction["seconds"],
            "ours_over_bare": extraction["seconds"] / extraction["values"]["bare_seconds"],
        },
        "stage": stage["values"],
        "references": references["values"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}",
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
