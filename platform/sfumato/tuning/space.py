"""The search space: drawing, enumerating and changing the values of a trial.

The values of trial n depend only on (seed, n) and the space, not on the number of trials or on the results of
earlier ones. A conditional field that does not apply is left out of a trial's values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sfumato.core.seeds import derive
from sfumato.tuning.parameter import Parameter

Space = Mapping[str, Parameter]
Values = dict[str, Any]


def active(space: Space, values: Mapping[str, Any], recipe: Mapping[str, Any]) -> Values:
    """The `values` whose conditions hold; `recipe` has the values of fields that are not searched.

    A condition on a searched field holds only if that field itself applies.
    """
    found: Values = {}

    def applies(name: str) -> bool:
        return all(
            applies(other) and space[name].allowed(other, values)
            if other in space
            else space[name].allowed(other, recipe)
            for other in space[name].when
        )

    for name in space:
        if name in values and applies(name):
            found[name] = values[name]
    return found


def problems(space: Space) -> list[str]:
    """Conditions that no order of drawing can meet, or that require values that are never drawn."""
    found = []
    for name, parameter in space.items():
        cycle = _cycle(space, name)
        if cycle:
            found.append(f"tune.space.{name}.when: the conditions form a circle: {' -> '.join(cycle)}")
        for other, wanted in parameter.when.items():
            if other not in space or space[other].bounds is not None:
                continue
            for option in wanted if isinstance(wanted, list | tuple) else [wanted]:
                if not space[other].contains(option):
                    shown = ", ".join(repr(value) for value in space[other].listed or ())
                    found.append(f"tune.space.{name}.when: {other} is never {option!r}, but one of {shown}")
    return found


def _cycle(space: Space, start: str) -> list[str]:
    """A path of conditions from `start` back to it, or nothing."""
    paths = [[start]]
    seen = {start}
    while paths:
        path = paths.pop()
        for other in space[path[-1]].when:
            if other == start:
                return [*path, start]
            if other in space and other not in seen:
                seen.add(other)
                paths.append([*path, other])
    return []


def drawn(space: Space, seed: int, number: int, recipe: Mapping[str, Any]) -> Values:
    """The values of the trial of that number in a random search; grids are traversed in order."""
    rng = np.random.default_rng(derive(seed, "tune", number))
    values = {name: parameter.draw(rng) for name, parameter in space.items()}
    grids = [name for name, parameter in space.items() if parameter.grid is not None]
    if grids:
        combinations = list(itertools.product(*(space[name].grid or () for name in grids)))
        values |= dict(zip(grids, combinations[number % len(combinations)], strict=True))
    return active(space, values, recipe)


def combinations(space: Space, recipe: Mapping[str, Any]) -> Iterator[Values]:
    """Every point of a space whose values can be counted, each once, the last field changing fastest.

    Raises ValueError naming a field whose values cannot be counted.
    """
    points = []
    for name, parameter in space.items():
        listed = parameter.points()
        if listed is None:
            raise ValueError(
                f"tune.space.{name}: a grid needs values that can be counted; give it a step, or choices"
            )
        points.append(listed)
    seen = []
    for combination in itertools.product(*points):
        values = active(space, dict(zip(space, combination, strict=True)), recipe)
        if values not in seen:
            seen.append(values)
            yield values


def perturbed(
    space: Space,
    values: Mapping[str, Any],
    rng: np.random.Generator,
    resample: float,
    recipe: Mapping[str, Any],
) -> Values:
    """Values near those of another trial: each redrawn with probability `resample`, else a neighbour."""
    changed = {}
    for name, parameter in space.items():
        redraw = rng.random() < resample or name not in values
        changed[name] = parameter.draw(rng) if redraw else parameter.neighbour(values[name], rng)
    return active(space, changed, recipe)
