"""Refuses, before training, data with several image sizes (buckets) for a model that takes only one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sfumato.data.columns import carried, spec_of
from sfumato.data.format.manifest import Manifest
from sfumato.data.order.pools import Pool
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe

_LISTED = 4


def check(recipe: Recipe, manifest: Manifest, pools: Sequence[Pool]) -> None:
    """Raises ConfigError, in one line, if the recipe's model cannot train on all sizes of its data."""
    found = sorted({pool.size for pool in pools})
    if len(found) == 1:
        return
    model = recipe.model
    if not model.takes_several_sizes():
        raise ConfigError(
            f"data.path: the images have {len(found)} sizes ({_shown(found)}), and this model of family "
            f"{model.family} takes one: pack with a size instead of buckets, or take family diffusion with "
            "network.kind=unet, on pixels"
        )
    spec = spec_of(recipe.data, manifest)
    known = model.problems(spec)  # `Recipe.check` reports this
    problems = [
        f"{problem} (of the images that are {width}x{height})"
        for height, width in found
        for problem in model.problems(replace(spec, height=height, width=width))
        if problem not in known
    ]
    if any(info.encoder is not None for info in carried(recipe.data, manifest).values()):
        problems.append(
            f"data.path: {recipe.data.path} was encoded beforehand, which needs images of one size"
        )
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def _shown(sizes: Sequence[tuple[int, int]]) -> str:
    """The first few, WIDTHxHEIGHT."""
    names = [f"{width}x{height}" for height, width in sizes]
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
