"""Compares what a command needs with what a cluster has: pure arithmetic on logical resources.

A job that asks for what no node ever has would wait for ever without a word, so this is looked at before
anything is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sfumato.recipe import Recipe
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.cluster.use import Use
from sfumato.runtime.jobs.cluster import Resources
from sfumato.runtime.jobs.command import Command


@dataclass(frozen=True)
class Room:
    """A number of equal workers or actors, each of which must fit on one node."""

    what: str
    count: int
    each: dict[str, float]
    fields: str
    """The recipe's fields to change where there is no room."""


@dataclass(frozen=True)
class Needs:
    """Totals over the cluster, and what has to fit on single nodes, of one stage."""

    cpus: int
    places: tuple[Room, ...]
    stage: str = ""


def needs_of(command: Command) -> list[Needs]:
    """What each stage of the command needs."""
    return [_needs(use) for use in command.uses]


def _needs(use: Use) -> Needs:
    """For elastic training with its fewest workers, for equal stages side by side with one of them."""
    cpus, places = 0, []
    if use.actors is not None:
        each = {"CPU": use.actors.cpus} | ({"GPU": use.actors.gpus} if use.actors.gpus else {})
        places.append(Room("actors", 1, each, use.actors.fields))
        cpus = math.ceil(use.actors.cpus)
    recipe = use.recipe
    if recipe is None:
        return Needs(cpus, tuple(places), use.stage)
    measures = use.measures and recipe.evaluate.actors != 0
    if use.trains:
        cpus = ray_cluster.cpus_to_train(recipe, recipe.parallel.least_workers)
        places.append(training_workers(recipe))
        if recipe.evaluate.every is not None:
            places.append(_actors(recipe, recipe.evaluate.actors_during, "evaluate.actors_during"))
    if measures:
        # If it takes as many as fit, one is enough.
        actors = 1 if recipe.evaluate.actors == "auto" else recipe.evaluate.actors
        places.append(_actors(recipe, actors, "evaluate.actors"))
        cpus = max(cpus, ray_cluster.cpus_to_evaluate(recipe))
    return Needs(cpus, tuple(places), use.stage)


def training_workers(recipe: Recipe) -> Room:
    parallel = recipe.parallel
    each = {"CPU": parallel.cpus_per_worker, **parallel.resources_per_worker}
    if parallel.gpus_per_worker:
        each["GPU"] = parallel.gpus_per_worker
    field = "parallel.min_workers" if parallel.elastic else "parallel.workers"
    return Room("training workers", parallel.least_workers, each, f"{field}, parallel.*_per_worker")


def lacking(needs: Sequence[Needs], nodes: Sequence[Resources]) -> list[str]:
    """Needs that the nodes could not meet even if all were empty; one line each."""
    return [
        f"stage {each.stage}: {line}" if each.stage else line
        for each in needs
        for line in _lacking(each, nodes)
    ]


def _lacking(needs: Needs, nodes: Sequence[Resources]) -> Iterator[str]:
    have = sum(node.get("CPU", 0.0) for node in nodes)
    if have < needs.cpus:
        yield (
            f"{needs.cpus} CPUs are needed (workers and their read tasks, or actors), {have:g} are there: "
            "lower parallel.workers, its cpus_per_worker, data.read_tasks or evaluate.actors, or add nodes"
        )
    for place in needs.places:
        room = sum(_fitting(place.each, node) for node in nodes)
        if room < place.count:
            yield (
                f"{place.count} {place.what} of {_text(place.each)} each are needed, and {_room(room)}: "
                f"lower {place.fields}, or add nodes that have it"
            )


def text_of(nodes: Sequence[Resources]) -> str:
    """What the nodes have, for people."""
    return "; ".join(_text(node) or "nothing" for node in nodes) or "no node"


def _actors(recipe: Recipe, count: int, field: str) -> Room:
    settings = recipe.evaluate
    each = {"CPU": settings.cpus_per_actor}
    if settings.gpus_per_actor:
        each["GPU"] = settings.gpus_per_actor
    return Room("evaluation actors", count, each, f"{field}, evaluate.*_per_actor")


def _fitting(each: Resources, node: Resources) -> int:
    """How many fit on an empty node. Ray counts in ten-thousandths."""
    return min(
        math.floor(round(node.get(name, 0.0) * 10_000) / round(amount * 10_000))
        for name, amount in each.items()
        if amount
    )


def _room(room: int) -> str:
    return "no node has room for one" if room == 0 else f"there is room for {room}"


def _text(resources: Resources) -> str:
    names = {"CPU": "CPUs", "GPU": "GPUs"}
    parts = [
        f"{amount:g} {names.get(name, name)}" for name, amount in resources.items() if _said(name, amount)
    ]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _said(name: str, amount: float) -> bool:
    """Memory and the names of nodes, which Ray counts as resources too, say nothing here."""
    internal = name in ("memory", "object_store_memory") or name.startswith(("node:", "accelerator_type:"))
    return amount > 0 and not internal
