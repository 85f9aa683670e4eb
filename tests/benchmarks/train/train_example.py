"""The diffusers project's own training example, run as it is, and our recipe of the same training.

The example (`examples/unconditional_image_generation/train_unconditional.py` of its repository, not part of
this one) trains an unconditional U-Net by accelerate's loop from a folder of images. It prints no speed that
can be read, so it runs twice, for few and for many epochs, and the difference counts: start-up, the pictures
that it draws at its end and saving the model are the same in both.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NEEDS = ("accelerate", "datasets", "torchvision", "tensorboard")
EPOCHS = (2, 10)
BATCH = 128
RECIPE: dict[str, Any] = {
    "name": "example",
    "data": {"streams": 8, "shuffle_window": 256, "read_tasks": 1},
    "model": {
        "family": "diffusion",
        "condition": "none",
        "network": {"channels": [32, 64], "layers_per_block": 1, "time_conditioning": "scale_shift"},
        "objective": {"prediction": "epsilon", "schedule": "linear", "timesteps": 1000},
        "optimizer": {"name": "adamw", "lr": {"peak": 1.0e-4}},
        "ema": {"halflife_images": 5_000},
    },
    "train": {"batch": BATCH, "preview_samples": 0},
}


def missing(script: Path | None, python: str) -> str | None:
    """Why that interpreter cannot run the example."""
    if script is None:
        return "no --example train_unconditional.py given"
    command = [python, "-c", f"import {', '.join(NEEDS)}"]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        return f"{python} cannot import all of {', '.join(NEEDS)} (--python: another interpreter)"
    return None


def write_images(folder: Path) -> int:
    """The digits as colour PNGs in a folder; how many."""
    from sklearn.datasets import load_digits

    folder.mkdir()
    pixels = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(np.stack([image] * 3, axis=-1)).save(folder / f"{number:05d}.png")
    return len(pixels)


def example(command: list[str], images: Path, side: int, unet: Path, scratch: Path, threads: int) -> float:
    """Images a second of the example's loop. `command` starts it, `unet` has its network's config.json."""
    seconds = [_run(command, images, side, unet, scratch, epochs, threads) for epochs in EPOCHS]
    return (EPOCHS[1] - EPOCHS[0]) * len(list(images.iterdir())) / (seconds[1] - seconds[0])


def _run(
    command: list[str], images: Path, side: int, unet: Path, scratch: Path, epochs: int, threads: int
) -> float:
    options = {
        "train_data_dir": images,
        "model_config_name_or_path": unet,
        "resolution": side,
        "train_batch_size": BATCH,
        "num_epochs": epochs,
        "lr_scheduler": "constant",
        "dataloader_num_workers": 1,
        "mixed_precision": "no",
        "eval_batch_size": 1,
        "ddpm_num_inference_steps": 1,
        "save_images_epochs": 1_000_000,
        "save_model_epochs": 1_000_000,
        "checkpointing_steps": 1_000_000,
        "output_dir": scratch / f"example-{epochs}",
        "cache_dir": scratch / "cache",
    }
    command = [*command, "--use_ema", *(f"--{name}={value}" for name, value in options.items())]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(scratch / "hub"),
        "ACCELERATE_USE_CPU": "true",
    }
    start = time.perf_counter()
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the example ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return time.perf_counter() - start
