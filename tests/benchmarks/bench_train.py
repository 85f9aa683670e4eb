"""Overhead of the training loop: the same model, batch and precision in a bare PyTorch loop and in ours.

`make bench-train` runs both in turn, several times, in one process on one worker: ours with all that
`sfumato train` has in a step (Ray Data, streams of noise, meters, logging to MLflow, checkpoints), the bare
loop with the images in memory and nothing but the update and the average. Prints a table and, last, one JSON
line.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

RECIPE = Path(__file__).parents[2] / "pipelines" / "digits" / "ddpm.yaml"


def bare(recipe: Any, data: Path, images: int, skip: int, threads: int) -> float:
    """Images a second of a loop as one writes it by hand: AdamW, clipping, EMA, label dropout."""
    from diffusers import DDPMScheduler

    from sfumato.data import local
    from sfumato.data.manifest import Manifest
    from sfumato.families.diffusion.networks.unet import build_unet

    torch.set_num_threads(threads)
    columns = list(local.read_all(data))
    pixels = np.concatenate([part["image"] for part in columns])
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    label = torch.from_numpy(np.concatenate([part["label"] for part in columns]))
    spec, model = Manifest.load(data).spec, recipe.model
    network = build_unet(model.network, spec, conditional=True)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0, fused=True
    )
    noise = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    batch, seen, start = recipe.train.batch, 0, 0.0
    while seen < images:
        if start == 0.0 and seen >= skip:
            start = time.perf_counter()
        row = torch.randint(len(image), (batch,))
        x, y = image[row], label[row]
        y = torch.where(torch.rand(batch) < 0.1, spec.num_classes, y)
        t, eps = torch.randint(1000, (batch,)), torch.randn_like(x)
        prediction = network(noise.add_noise(x, eps, t), t, class_labels=y).sample
        loss = functional.mse_loss(prediction, noise.get_velocity(x, eps, t))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 0.01)
        seen += batch
    return (seen - skip) / (time.perf_counter() - start)


def ours(recipe: Any, root: Path, skip: int) -> float:
    """Images a second of `sfumato train`, from the curve that it logged."""
    from sfumato.runtime import stages
    from sfumato.runtime.display import Display
    from sfumato.tracking.store import Store

    with Display() as display, stages.session(recipe, display, root=root, fresh=True) as session:
        with stages.cluster_to_train(session):
            stages.train(session)
        client = Store.of(recipe.tracking, root).client()
        points = client.get_metric_history(session.tracker.run_id, "train/images_per_second")
    interval = recipe.train.log_every
    rates = [point.value for point in points if point.step > skip + interval]
    return statistics.harmonic_mean(rates)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_240)
    parser.add_argument("--skip", type=int, default=2_560, help="images of warm-up that do not count")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    from sfumato import recipe as recipes
    from sfumato.data.pack import pack

    pairs = []
    with tempfile.TemporaryDirectory(prefix="sfumato-bench-") as folder:
        root = Path(folder)
        recipe = recipes.load(
            RECIPE,
            [
                f"storage={root / 'runs'}",
                f"data.path={root / 'digits'}",
                f"train.images={arguments.images}",
                "train.micro_batch=null",
                "train.log_every=1280",
                "train.preview_samples=0",
                "train.checkpoint.every=5120",
                "parallel.workers=1",
                f"parallel.threads_per_worker={arguments.threads}",
            ],
        )
        pack("digits", root / "digits")
        for _ in range(arguments.rounds):
            by_hand = bare(recipe, root / "digits", arguments.images, arguments.skip, arguments.threads)
            by_us = ours(recipe, root, arguments.skip)
            pairs.append((by_hand, by_us))
    print(f"\n{'round':>5} {'bare images/s':>14} {'ours images/s':>14} {'time ratio':>11}")
    for number, (by_hand, by_us) in enumerate(pairs):
        print(f"{number:>5} {by_hand:>14.1f} {by_us:>14.1f} {by_hand / by_us:>11.3f}")
    ratios = [by_hand / by_us for by_hand, by_us in pairs]
    print(
        json.dumps(
            {
                "benchmark": "train_loop_overhead",
                "recipe": recipe.name,
                "bare_images_per_second": statistics.median(by_hand for by_hand, _ in pairs),
                "ours_images_per_second": statistics.median(by_us for _, by_us in pairs),
                "ratios": [round(ratio, 4) for ratio in ratios],
                "ratio": round(statistics.median(ratios), 4),
                "batch": recipe.train.batch,
                "threads": arguments.threads,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            }
        )
    )


if __name__ == "__main__":
    main()
