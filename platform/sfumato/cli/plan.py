"""`sfumato plan`: what a recipe would cost on GPUs that are not here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.arguments import AsJson, Overrides, RecipeFile, Trust
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.core.batch import DataSpec
    from sfumato.recipe import Recipe

_GB = 1e9


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 8,
    gpu: Annotated[str, typer.Option(help="Their kind: a100, h100, h200, l40s, a10, l4.")] = "h100",
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the peak that a step's arithmetic reaches.")
    ] = 0.35,
    network: Annotated[
        float, typer.Option(min=0.01, help="Between nodes of 8 GPUs: GB/s of one GPU, in one direction.")
    ] = 50.0,
    storage: Annotated[
        float, typer.Option(min=0.001, help="Of checkpoints and data: GB/s of all GPUs together.")
    ] = 5.0,
    restart: Annotated[float, typer.Option(min=0.0, help="Seconds from a failure to the next step.")] = 180.0,
    image: Annotated[
        str | None,
        typer.Option(metavar="CxHxW", help="What data that is not packed yet will look like: 3x256x256."),
    ] = None,
    classes: Annotated[int, typer.Option(min=0, help="With --image: how many classes it will have.")] = 0,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Estimate memory, time, communication, checkpoints and goodput of a recipe, and propose a layout."""
    from sfumato import recipe as recipes
    from sfumato.core.finding import built_in_only
    from sfumato.planning import printed
    from sfumato.planning.estimate import Assumptions
    from sfumato.planning.gpus import find
    from sfumato.planning.plan import plan as planned
    from sfumato.runtime.runs import pretrained

    kind = find(gpu)
    with built_in_only(not trust):
        loaded = pretrained.resolved(recipes.load(recipe, overrides or []), Path.cwd())
        data, bytes_per_image = _data(loaded, image, classes)
        found = planned(
            loaded,
            data,
            gpu=kind,
            gpus=gpus,
            bytes_per_image=bytes_per_image,
            assumed=Assumptions(mfu=mfu, network=network * _GB, storage=storage * _GB, restart=restart),
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
    print(json.dumps(printed.as_data(found)) if as_json else printed.as_text(found))


def _data(recipe: Recipe, image: str | None, classes: int) -> tuple[DataSpec, float]:
    """What the model sees, and an image's stored bytes: the data set's, or else the raw ones of `image`."""
    from sfumato.core.batch import DataSpec
    from sfumato.data.columns import spec_of
    from sfumato.data.format.manifest import Manifest

    if image is None:
        if not Manifest.exists(recipe.data.path):
            raise ConfigError(
                f"{recipe.data.path} is not packed yet, so the images' shape is not known: pack it first, or "
                "say what it will be with --image 3x256x256 --classes 1000"
            )
        manifest = Manifest.load(recipe.data.path)
        return spec_of(recipe.data, manifest), manifest.bytes / manifest.samples
    sides = image.lower().split("x")
    if len(sides) != 3 or not all(side.isdigit() and int(side) for side in sides):
        raise ConfigError(f"--image {image}: write channels, height and width, for example 3x256x256")
    channels, height, width = (int(side) for side in sides)
    spec = DataSpec(channels, height, width, tuple(str(number) for number in range(classes)))
    return spec, float(channels * height * width)
