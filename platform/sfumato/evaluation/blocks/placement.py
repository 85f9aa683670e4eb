"""How many actors a Ray cluster has room for, and what is said where it has none."""

from __future__ import annotations

import os

from sfumato.errors import CapabilityError
from sfumato.evaluation.blocks.workers import WorkerSettings


def actors_for(settings: WorkerSettings, tasks: int) -> int:
    """How many actors to start for this many calls: as set, or as many as the cluster holds.

    A private cluster on this machine declares more CPUs than exist, for tasks that mostly wait; actors
    compute all the time, so there the number of cores counts.
    """
    if settings.actors != "auto":
        return min(int(settings.actors), tasks)
    import ray

    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = have.get("CPU", 0.0)
    if not os.environ.get("RAY_ADDRESS"):
        cpus = min(cpus, len(os.sched_getaffinity(0)))
    fitting = cpus / settings.cpus_per_actor
    if settings.gpus_per_actor:
        fitting = min(fitting, have.get("GPU", 0.0) / settings.gpus_per_actor)
    return max(1, min(int(fitting), tasks))


def check_placeable(settings: WorkerSettings) -> None:
    """An actor larger than every machine would wait forever; report that at once."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    largest = max((node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"]), default=0.0)
    # A head without CPUs may scale up; its actors are given `start_timeout`.
    if 0 < largest < settings.cpus_per_actor:
        raise CapabilityError(
            f"evaluate.cpus_per_actor={settings.cpus_per_actor:g} fits no machine of this Ray cluster, whose "
            f"largest has {largest:g} CPUs: set evaluate.cpus_per_actor={largest:g} or less"
        )


def no_actor(settings: WorkerSettings) -> str:
    import ray

    free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    total = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    return (
        f"no evaluation actor started within evaluate.start_timeout={settings.start_timeout:g} s: each needs "
        f"{settings.cpus_per_actor:g} CPUs and {settings.gpus_per_actor:g} GPUs, and {free:g} of the "
        f"cluster's {total:g} CPUs are free; set evaluate.actors=0 to evaluate in this "
        "process, or give Ray more"
    )
