"""Which stages may start now. Pure: it decides, the controller starts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """A stage's needs while it runs: logical CPUs, GPUs, and the run that it alone may write to."""

    cpus: float = 0.0
    gpus: float = 0.0
    run: str | None = None


def startable(
    waiting: Mapping[str, Demand], running: Mapping[str, Demand], *, room: Demand, at_once: int
) -> list[str]:
    """The stages of `waiting` to start in addition to those `running`, in order.

    A stage that does not fit waits, and a smaller one behind it may go first. If nothing else runs, a
    stage is started whatever it needs: its own message about what is missing is better.
    """
    chosen: dict[str, Demand] = {}
    for name, demand in waiting.items():
        active = [*running.values(), *chosen.values()]
        if len(active) >= at_once:
            break
        if not active or (_fits(demand, active, room) and not _taken(demand, active)):
            chosen[name] = demand
    return list(chosen)


def room_for(demands: Sequence[Demand], at_once: int) -> Demand:
    """The smallest cluster with room for any `at_once` of the stages together."""
    cpus = sorted((demand.cpus for demand in demands), reverse=True)[:at_once]
    return Demand(sum(cpus), max((demand.gpus for demand in demands), default=0.0))


def _fits(demand: Demand, active: Sequence[Demand], room: Demand) -> bool:
    cpus = sum(other.cpus for other in active) + demand.cpus
    gpus = sum(other.gpus for other in active) + demand.gpus
    return cpus <= room.cpus and gpus <= room.gpus


def _taken(demand: Demand, active: Sequence[Demand]) -> bool:
    return demand.run is not None and any(other.run == demand.run for other in active)
