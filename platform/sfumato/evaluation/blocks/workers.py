"""Who makes an evaluation's blocks: this process, or Ray actors (`ray_pool.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Build = Callable[[], Callable[[T], R]]
"""Builds, where it runs, the function that turns a task into its result: it loads a model, say."""


class WorkerSettings(Protocol):
    """What workers read of the recipe's `evaluate` section."""

    @property
    def actors(self) -> int | Literal["auto"]: ...
    @property
    def cpus_per_actor(self) -> float: ...
    @property
    def gpus_per_actor(self) -> float: ...
    @property
    def start_timeout(self) -> float: ...


class Workers(Protocol):
    """Whoever makes results of tasks. `here` says whether that is this process."""

    here: bool

    def run(self, build: Build[T, R], tasks: Sequence[T], at_once: int = 1) -> Iterator[R]:
        """All results, in the order of completion; `at_once` tasks form a unit of work."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class InProcess:
    """This process makes everything, one task after another."""

    here = True

    def run(self, build: Build[T, R], tasks: Sequence[T], at_once: int = 1) -> Iterator[R]:
        """The results, in order."""
        if tasks:
            yield from map(build(), tasks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
