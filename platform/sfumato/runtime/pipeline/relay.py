"""Passes messages from the processes of stages to the driver's display, and which runs they began."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
from rich.console import Console

from sfumato.runtime.runs.display import Display

_INTERVAL_S = 0.5


class Said(NamedTuple):
    """A call of a method of the stage's display, or the news (`began`) of its run."""

    stage: str
    method: str
    arguments: tuple[Any, ...]


class Relay:
    """A small actor between them."""

    def __init__(self) -> None:
        self._said: list[Said] = []

    def say(self, stage: str, method: str, arguments: tuple[Any, ...]) -> None:
        self._said.append(Said(stage, method, arguments))

    def take(self) -> list[Said]:
        """The messages since the last call."""
        said, self._said = self._said, []
        return said


def create() -> Any:
    """Handle of a new relay on the driver's node; it takes no CPU. Any: Ray adds `.remote` at run time."""
    here = ray.get_runtime_context().get_node_id()
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(Relay).options(num_cpus=0, scheduling_strategy=strategy).remote()


class RelayDisplay(Display):
    """A display in a stage's process: everything goes to the relay."""

    def __init__(self, relay: Any, stage: str) -> None:
        super().__init__(Console(quiet=True))
        self._relay = relay
        self._name = stage
        self._updated = 0.0

    def stage(self, name: str) -> None:
        self._say("stage", name)

    def update(self, done: int, total: int | None, metrics: Mapping[str, float] | None = None) -> None:
        if time.monotonic() - self._updated >= _INTERVAL_S:
            self._updated = time.monotonic()
            self._say("update", done, total, None if metrics is None else dict(metrics))

    def done(self, text: str) -> None:
        self._say("done", text)

    def skipped(self, name: str, text: str) -> None:
        self._say("skipped", name, text)

    def note(self, text: str) -> None:
        self._say("note", text)

    def line(self, text: str) -> None:
        self._say("line", text)

    def began(self, run: Path) -> None:
        """Tell which run the stage works on."""
        self._say("began", str(run))

    def _say(self, method: str, *arguments: Any) -> None:
        self._relay.say.remote(self._name, method, arguments)
