"""Refuses, before training from stored weights, a run that cannot fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sfumato.core.batch import DataSpec
from sfumato.core.family import Family, Frozen, Trainable
from sfumato.core.stored import Weights
from sfumato.errors import ConfigError
from sfumato.planning.held import Held, Layout
from sfumato.recipe import Recipe

_GIB = 2**30
_MOST = 16
"""No run needs more bytes for each one of its stored weights: for two of half precision there are a weight,
its gradient, two moments and an average of four, with some to spare."""
_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check(recipe: Recipe, data: DataSpec) -> None:
    """Raises ConfigError, in one line, if what training holds is more than there is. Activations come on top.

    A run that trains from no stored weights, or from small ones, is not estimated; nor is one whose workers
    are on other machines.
    """
    room = _room(recipe)
    if not recipe.parallel.check_memory or room is None:
        return
    family = recipe.model.build(data)
    stored = sum(size for weights in _started_from(family) for size in _sizes(weights))
    ranks = 1 if recipe.parallel.gpus_per_worker else recipe.parallel.workers
    if not stored or _MOST * stored * ranks < room:
        return
    held = held_by(recipe, family)
    if held is not None and ranks * held.total > room:
        raise ConfigError(said(held, recipe, room))


def held_by(recipe: Recipe, family: Family) -> Held | None:
    """What a rank holds; None for networks that cannot be built without memory."""
    from sfumato.planning.counting import at_rest  # takes a second
    from sfumato.planning.plan import layout_of

    layout: Layout = layout_of(recipe.parallel)
    try:
        return layout.held(at_rest(family))
    except ConfigError:
        return None


def said(held: Held, recipe: Recipe, room: float) -> str:
    """The error."""
    parts = {
        "weights": held.parameters + held.frozen + held.gathered,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "averages": held.averages,
    }
    each = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in parts.items())
    workers = recipe.parallel.workers
    has = "its GPU has"
    if not recipe.parallel.gpus_per_worker:
        has = f"this machine has for {workers} of them" if workers > 1 else "this machine has"
    return (
        f"model.pretrained: a worker needs {held.total / _GIB:.1f} GiB ({each}) before activations, and "
        f"{has} {room / _GIB:.1f} GiB; train an adapter such as lora, shard over more GPUs "
        "(parallel.strategy=fsdp) or use fewer workers, or try with parallel.check_memory=false"
    )


def _room(recipe: Recipe) -> float | None:
    """Bytes that all workers of this machine share, or one of its GPUs; None where workers are elsewhere."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    if recipe.parallel.gpus_per_worker:
        import torch

        if not torch.cuda.is_available():
            return None
        return float(torch.cuda.get_device_properties(0).total_memory)
    import psutil

    total = float(psutil.virtual_memory().total)
    try:
        return min(total, float(_LIMIT.read_text()))
    except (OSError, ValueError):  # no control group, or one without a limit
        return total


def _started_from(family: Family) -> Iterator[Weights]:
    """Where the weights of its networks are."""
    for spec in family.nets.values():
        if isinstance(spec, (Trainable, Frozen)) and spec.weights is not None:
            yield spec.weights
            yield from spec.weights.also


def _sizes(weights: Weights) -> Iterator[int]:
    """Bytes of its files."""
    place = Path(weights.place)
    files = [place] if place.is_file() else place.glob("*.safetensors")
    for file in files:
        yield file.stat().st_size
