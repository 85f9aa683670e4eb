"""Makes the missing blocks: in this process, or in as many Ray actors as the cluster holds.

The caller has started Ray.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from sfumato.errors import CapabilityError, SfumatoError
from sfumato.evaluation.block_plan import BlockPlan
from sfumato.evaluation.blocks import BlockMaker, FeatureBlock, Task
from sfumato.evaluation.config import AUTO, EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation, Opened
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.metric_inputs import Prepared
from sfumato.evaluation.metrics.metric import PairMetric
from sfumato.evaluation.source import SampleSource

if TYPE_CHECKING:
    import ray

Build = list["ray.ObjectRef[Callable[[], BlockMaker]]"]
"""One reference to the function that builds a block maker."""

RESTARTS = 3
IN_FLIGHT = 2
"""Tasks queued on an actor: one at work, one waiting, so that no actor waits for the driver."""


@dataclass(frozen=True, slots=True)
class Making:
    """What a worker needs to build its block maker; every worker receives a copy."""

    evaluation: Evaluation
    extractors: Sequence[Extractor]
    pairs: Mapping[str, PairMetric]
    inputs: Mapping[str, Prepared]

    @classmethod
    def of(cls, opened: Opened) -> Self:
        """Without the source, since every worker has its own, and without the reference's features."""
        evaluation = opened.evaluation.for_workers()
        return cls(evaluation, opened.extractors, opened.selection.pairs, opened.inputs)

    def __call__(self) -> BlockMaker:
        """The maker, with its own model."""
        return self.with_source(self.evaluation.source())

    def with_source(self, source: SampleSource) -> BlockMaker:
        """The maker around an existing model."""
        seed = self.evaluation.settings.seed
        return BlockMaker(source, self.extractors, seed=seed, pairs=self.pairs, inputs=self.inputs)


def make_missing(opened: Opened, plan: BlockPlan) -> None:
    """Makes and stores every block of the plan that is not stored yet."""
    everything = [*plan.tasks, *(task for tasks in plan.further.values() for task in tasks)]
    tasks = plan.store.missing(everything)
    total = plan.samples + sum(plan.rows.values())
    done = len(everything) - len(tasks)

    def tell() -> None:
        if opened.evaluation.progress:
            opened.evaluation.progress(min(done * plan.block, total), total)

    tell()
    for block in _blocks(tasks, opened):
        plan.store.save(block)
        done += 1
        tell()


def _blocks(tasks: Sequence[Task], opened: Opened) -> Iterator[FeatureBlock]:
    if not tasks:
        return
    settings, making = opened.evaluation.settings, Making.of(opened)
    if settings.actors == 0:
        yield from map(making.with_source(opened.source).make, tasks)
        return
    at_once = -(-(settings.batch_size or 1) // opened.source.block)
    calls = -(-len(tasks) // at_once)
    with RayPool(making, settings, actors_for(settings, calls)) as pool:
        yield from pool.run(tasks, at_once)


class Worker:
    """A block maker, built where it runs, on the first call. Ray restarts a dead one, empty."""

    def __init__(self) -> None:
        self._maker: BlockMaker | None = None

    def ready(self, build: Build) -> None:
        """Returns once the maker is built."""
        self._built(build)

    def make(self, tasks: Sequence[Task], build: Build) -> list[FeatureBlock]:
        maker = self._built(build)
        return [maker.make(task) for task in tasks]

    def _built(self, build: Build) -> BlockMaker:
        import ray

        if self._maker is None:
            self._maker = ray.get(build[0])()
        return self._maker


class RayPool:
    """Actors that make blocks. Blocks come back in the order of completion, not of index.

    An actor that cannot be placed yet leaves its share to the others. A context manager: leaving it ends
    the actors.
    """

    def __init__(self, build: Callable[[], BlockMaker], settings: EvaluateSettings, actors: int) -> None:
        import ray

        self._settings = settings
        _check_placeable(settings)
        # Ray adds `.remote` to methods in a way that type checkers cannot follow.
        actor: Any = ray.remote(Worker).options(
            num_cpus=settings.cpus_per_actor,
            num_gpus=settings.gpus_per_actor,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        # Stored once; in a list, so that Ray passes the reference and a worker fetches it when needed.
        self._build = [ray.put(build)]
        self._actors: list[Any] = [actor.remote() for _ in range(actors)]

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def run(self, tasks: Sequence[Task], at_once: int = 1) -> Iterator[FeatureBlock]:
        """All blocks, `at_once` of them per call of an actor.

        Raises the SfumatoError of a task, or one that states why the actors failed.
        """
        import ray

        waiting = deque(tasks[first : first + at_once] for first in range(0, len(tasks), at_once))
        starting = {actor.ready.remote(self._build): actor for actor in self._actors}
        working: dict[ray.ObjectRef[list[FeatureBlock]], Any] = {}
        while waiting or working:
            patience = None if working else self._settings.start_timeout
            done, _ = ray.wait([*working, *starting], num_returns=1, timeout=patience)
            if not done:
                raise CapabilityError(_no_actor(self._settings))
            reference = done[0]
            if reference in starting:
                actor, places = starting.pop(reference), IN_FLIGHT
                _result(reference)
            else:
                actor, places = working.pop(reference), 1
                yield from _result(reference)
            for _ in range(min(places, len(waiting))):
                working[actor.make.remote(waiting.popleft(), self._build)] = actor


def actors_for(settings: EvaluateSettings, tasks: int) -> int:
    """How many actors to start for this many calls: as set, or as many as the cluster holds.

    A private cluster on this machine declares more CPUs than exist, for tasks that mostly wait; actors
    compute all the time, so there the number of cores counts.
    """
    if settings.actors != AUTO:
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


def _result(reference: Any) -> Any:
    """What the task returned; its error in one line."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SfumatoError):
            raise error.cause from None
        raise SfumatoError(f"evaluation failed in an actor: {_one_line(error.cause)}") from error
    except ray.exceptions.RayActorError as error:
        raise SfumatoError(
            f"evaluation stopped: an actor died {RESTARTS + 1} times, last with {_one_line(error)}; "
            "finished blocks are kept, evaluate again to resume"
        ) from error


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _check_placeable(settings: EvaluateSettings) -> None:
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


def _no_actor(settings: EvaluateSettings) -> str:
    import ray

    free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    total = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    return (
        f"no evaluation actor started within evaluate.start_timeout={settings.start_timeout:g} s: each needs "
        f"{settings.cpus_per_actor:g} CPUs and {settings.gpus_per_actor:g} GPUs, and {free:g} of the "
        f"cluster's {total:g} CPUs are free; set evaluate.actors=0 to evaluate in this "
        "process, or give Ray more"
    )
