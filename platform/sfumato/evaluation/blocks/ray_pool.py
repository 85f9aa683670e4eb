"""Ray actors that make an evaluation's blocks, as many as the cluster holds.

They start when there is something to make for the first time, and serve every part of an evaluation: features
of references, then blocks of samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Self

from sfumato.core.allocator import keep_freed_memory
from sfumato.errors import CapabilityError, SfumatoError
from sfumato.evaluation.blocks.placement import actors_for, check_placeable, no_actor
from sfumato.evaluation.blocks.workers import Build, InProcess, R, T, Workers, WorkerSettings

if TYPE_CHECKING:
    import ray

RESTARTS = 3
IN_FLIGHT = 2
"""Tasks queued on an actor: one at work, one waiting, so that no actor waits for the driver."""


def workers_for(
    settings: WorkerSettings, joined: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Workers:
    """As the settings say. `joined` is entered before actors start, to connect to a cluster where the caller
    has not started Ray.
    """
    return InProcess() if settings.actors == 0 else RayPool(settings, joined)


class Worker:
    """Holds the function of the latest `build`, built on its first task. Ray restarts a dead one, empty."""

    def __init__(self) -> None:
        keep_freed_memory(of_any_size=True)
        self._make: Callable[[Any], Any] | None = None
        self._built_by = ""

    def ready(self, build: list[ray.ObjectRef[Any]]) -> None:
        """Returns once the function is built."""
        self._built(build)

    def make(self, tasks: Sequence[Any], build: list[ray.ObjectRef[Any]]) -> list[Any]:
        """The results of a unit of work."""
        return list(map(self._built(build), tasks))

    def _built(self, build: list[ray.ObjectRef[Any]]) -> Callable[[Any], Any]:
        import ray

        name = build[0].hex()
        if self._make is None or self._built_by != name:
            self._make = None  # its networks make room for those of the next
            self._make, self._built_by = ray.get(build[0])(), name
        return self._make


class RayPool:
    """Actors that stay until the block ends. Results come back in the order of completion.

    An actor that cannot be placed yet leaves its share to the others.
    """

    here = False

    def __init__(
        self, settings: WorkerSettings, joined: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._settings = settings
        self._joined = joined
        self._stack = ExitStack()
        self._actors: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._actors:
            import ray

            for actor in self._actors:
                ray.kill(actor)
            self._actors = []
        self._stack.close()

    def run(self, build: Build[T, R], tasks: Sequence[T], at_once: int = 1) -> Iterator[R]:
        """All results, `at_once` of them per call of an actor.

        Raises the SfumatoError of a task, or one that states why the actors failed.
        """
        if not tasks:
            return
        waiting = deque(tasks[first : first + at_once] for first in range(0, len(tasks), at_once))
        self._start(len(waiting))
        import ray

        # Stored once; in a list, so that Ray passes the reference and a worker fetches it when needed.
        stored = [ray.put(build)]
        starting = {actor.ready.remote(stored): actor for actor in self._actors}
        working: dict[ray.ObjectRef[list[R]], Any] = {}
        while waiting or working:
            patience = None if working else self._settings.start_timeout
            done, _ = ray.wait([*working, *starting], num_returns=1, timeout=patience)
            if not done:
                raise CapabilityError(no_actor(self._settings))
            reference = done[0]
            if reference in starting:
                actor, places = starting.pop(reference), IN_FLIGHT
                _result(reference)
            else:
                actor, places = working.pop(reference), 1
                yield from _result(reference)
            for _ in range(min(places, len(waiting))):
                working[actor.make.remote(waiting.popleft(), stored)] = actor

    def _start(self, calls: int) -> None:
        """As many actors as so many calls can use, with those that run."""
        import ray

        if not self._actors:
            self._stack.enter_context(self._joined())
            check_placeable(self._settings)
        # Ray adds `.remote` to methods in a way that type checkers cannot follow.
        actor: Any = ray.remote(Worker).options(
            num_cpus=self._settings.cpus_per_actor,
            num_gpus=self._settings.gpus_per_actor,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        while len(self._actors) < actors_for(self._settings, calls):
            self._actors.append(actor.remote())


def _result(reference: Any) -> Any:
    """What the task returned; its error in one line."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SfumatoError):
            raise error.cause from None
        raise SfumatoError(f"an actor failed: {_one_line(error.cause)}") from error
    except ray.exceptions.RayActorError as error:
        raise SfumatoError(
            f"an actor died {RESTARTS + 1} times, last with {_one_line(error)}; is memory short? "
            "Run the same again: evaluations and edits resume"
        ) from error


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
