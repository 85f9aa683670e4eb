"""How long an image takes to sample by each recipe, and DDPM's beside a loop of diffusers' own parts.

    make bench-sampling ARGS="--recipes ddpm glow"

The networks have their initial weights, on which the time does not depend, so nothing is trained. The peer
has the same U-Net, scheduler, guidance and block of rows, written out by hand. Both run in turn, `--rounds`
times. The last line is JSON with everything and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfumato import families
from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec
from sfumato.core.family import EmaOf, Family, FamilyConfig, Frozen, Trainable
from sfumato.sampling.generator import Generator

PIPELINES = Path(__file__).parents[3] / "pipelines" / "digits"
SPEC = DataSpec(1, 8, 8, tuple("0123456789"))
RECIPES = (
    *("ddpm", "edm", "dit", "consistency", "latent", "dcgan", "resnet_gan"),
    *("vae", "glow", "realnvp", "pixelcnn", "transformer"),
)
PEER = "ddpm"


def config_of(name: str) -> FamilyConfig:
    """The recipe's model; a first stage is the recipe that its run has the name of, with initial weights."""
    content = recipes.read(PIPELINES / f"{name}.yaml")["model"]
    if stage := content.get("first_stage"):
        first = config_of(stage["run"].removeprefix("digits-"))
        card = {"family": "vae", "config": first.model_dump(mode="json"), "data": SPEC}
        content = {**content, "first_stage": {"model": card}}
    return families.config_class(content["family"]).model_validate(content)


def initial(family: Family) -> dict[str, nn.Module]:
    """What samples, as training would begin with it."""
    nets = {}
    for name in family.samplers:
        spec = family.nets[name]
        if isinstance(spec, EmaOf):
            spec = family.nets[spec.source]
        assert isinstance(spec, Trainable | Frozen)
        nets[name] = spec.build()
    return nets


def by_hand(generator: Generator) -> Callable[[int], None]:
    """The loop that one writes with diffusers: both halves of the guidance in one batch."""
    from diffusers import DPMSolverMultistepScheduler

    unet, rows = generator.nets["ema"], generator.block
    sampling: Any = generator.config.sampling
    steps, guidance = sampling.steps, sampling.guidance

    @torch.no_grad()
    def draw(images: int) -> None:
        for first in range(0, images, rows):
            scheduler = DPMSolverMultistepScheduler(
                1000,
                beta_schedule="squaredcos_cap_v2",
                prediction_type="v_prediction",
                timestep_spacing="trailing",
                lambda_min_clipped=-5.1,
                thresholding=True,
                sample_max_value=1.0,
            )
            scheduler.set_timesteps(steps)
            label = torch.arange(first, first + rows) % SPEC.num_classes
            labels = torch.cat([label, torch.full_like(label, SPEC.num_classes)])
            x = torch.randn(rows, *SPEC.shape)
            for t in scheduler.timesteps:
                given, free = unet(torch.cat([x, x]), t, class_labels=labels).sample.chunk(2)
                x = scheduler.step(free + guidance * (given - free), t, x).prev_sample

    return draw


def seconds(draw: Callable[[int], Any], images: int) -> float:
    start = time.perf_counter()
    draw(images)
    return (time.perf_counter() - start) / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--images", type=int, default=256, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"benchmark": "sampling", "threads": options.threads, "seconds_per_image": {}}
    print(f"{'recipe':>14} {'ms an image':>12}")
    for name in options.recipes:
        config = config_of(name)
        generator = Generator(config, SPEC, initial(config.build(SPEC)))
        peer = by_hand(generator) if name == PEER else None

        def ours(images: int, generator: Generator = generator) -> None:
            for _ in generator.batches(images):
                pass

        for draw in (ours, peer):
            if draw is not None:
                draw(generator.block)  # once before the clock runs
        times, ratios = [], []
        for _ in range(options.rounds):
            times.append(seconds(ours, options.images))
            if peer is not None:
                ratios.append(times[-1] / seconds(peer, options.images))
        found["seconds_per_image"][name] = round(statistics.median(times), 6)
        line = f"{name:>14} {1000 * statistics.median(times):>12.2f}"
        if ratios:
            found["ours_over_diffusers"] = round(statistics.median(ratios), 3)
            line += f"   {statistics.median(ratios):.2f} of the loop of diffusers' parts"
        print(line, flush=True)
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
