"""Which pods a command needs on Kubernetes: groups of equal ones, derived from the recipe's own numbers.

Training workers are alone on their pods, so that nothing takes the processors that they were promised; Ray
Data's tasks and CPU evaluation run on a group of their own. Evaluation on GPUs uses those of training once
that is over; evaluation during training, and what does not fit there, gets another group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from sfumato.recipe import Recipe
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.cluster.use import Actors, Use
from sfumato.runtime.jobs.command import Command

LARGEST_DATA_POD = 8


@dataclass(frozen=True)
class Group:
    """Equal pods; `cpus`, `gpus` and `custom` are what each declares to Ray."""

    name: str
    replicas: int
    cpus: int
    gpus: int = 0
    custom: dict[str, float] = field(default_factory=dict)

    def resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus), "GPU": float(self.gpus), **self.custom}


def groups_of(command: Command) -> list[Group]:
    """The groups for a command, each as large as its largest stage asks, those without pods left out."""
    largest: dict[str, Group] = {}
    for use in command.uses:
        for group in _groups(use):
            largest[group.name] = _larger(group, largest[group.name]) if group.name in largest else group
    return list(largest.values()) or [_data(1, largest=LARGEST_DATA_POD)]


def _groups(use: Use) -> list[Group]:
    groups = [] if use.recipe is None else _of_recipe(use.recipe, trains=use.trains, measures=use.measures)
    if use.actors is not None:
        groups += _of_actors(use.actors)
    return [replace(group, replicas=group.replicas * use.at_once) for group in groups if group.replicas]


def _of_recipe(recipe: Recipe, *, trains: bool, measures: bool) -> list[Group]:
    groups = [_training(recipe)] if trains else []
    cpus = recipe.parallel.workers * recipe.data.read_tasks if trains else 0
    if trains:
        cpus += ray_cluster.cpus_during(recipe.evaluate) if not recipe.evaluate.gpus_per_actor else 1
    if measures and not recipe.evaluate.gpus_per_actor:
        cpus = max(cpus, _actors(recipe) * math.ceil(recipe.evaluate.cpus_per_actor))
    groups.append(
        _data(max(1, cpus), largest=max(LARGEST_DATA_POD, math.ceil(recipe.evaluate.cpus_per_actor)))
    )
    groups.append(_evaluation(recipe, groups, trains=trains, measures=measures))
    return groups


def _of_actors(actors: Actors) -> list[Group]:
    if actors.gpus:
        pod = Group("evaluate", actors.count, cpus=math.ceil(actors.cpus), gpus=math.ceil(actors.gpus))
        return [pod, _data(1, largest=LARGEST_DATA_POD)]
    cpus = math.ceil(actors.count * actors.cpus)
    return [_data(cpus, largest=max(LARGEST_DATA_POD, math.ceil(actors.cpus)))]


def _larger(group: Group, other: Group) -> Group:
    """Pods that hold those of either."""
    custom = {
        name: max(group.custom.get(name, 0.0), other.custom.get(name, 0.0))
        for name in (group.custom | other.custom)
    }
    return Group(
        group.name,
        replicas=max(group.replicas, other.replicas),
        cpus=max(group.cpus, other.cpus),
        gpus=max(group.gpus, other.gpus),
        custom=custom,
    )


def _training(recipe: Recipe) -> Group:
    parallel = recipe.parallel
    # Workers that share a GPU, or a processor, have to be on one pod.
    share = parallel.gpus_per_worker
    whole = share or parallel.cpus_per_worker
    together = min(parallel.workers, math.floor(1 / whole)) if whole < 1 else 1
    return Group(
        "train",
        replicas=math.ceil(parallel.workers / together),
        cpus=math.ceil(together * parallel.cpus_per_worker),
        gpus=math.ceil(together * share),
        custom={name: amount * together for name, amount in parallel.resources_per_worker.items()},
    )


def _data(cpus: int, *, largest: int) -> Group:
    replicas = math.ceil(cpus / largest)
    return Group("data", replicas=replicas, cpus=largest if replicas > 1 else cpus)


def _evaluation(recipe: Recipe, others: list[Group], *, trains: bool, measures: bool) -> Group:
    """GPU actors that find no room on the pods of training."""
    settings = recipe.evaluate
    each = settings.gpus_per_actor
    if not each:
        return Group("evaluate", 0, 0)
    wanted = settings.actors_during if trains and settings.every is not None else 0
    if measures:
        room = sum(
            group.replicas
            * min(math.floor(group.gpus / each), math.floor(group.cpus / settings.cpus_per_actor))
            for group in others
            if group.gpus
        )
        wanted = max(wanted, _actors(recipe) - room)
    return Group("evaluate", max(0, wanted), cpus=math.ceil(settings.cpus_per_actor), gpus=math.ceil(each))


def _actors(recipe: Recipe) -> int:
    actors = recipe.evaluate.actors
    return 1 if actors == "auto" else actors
