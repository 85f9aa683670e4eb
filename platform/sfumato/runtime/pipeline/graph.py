"""The order of a pipeline's stages by their dependencies. Pure: names and sets, no files and no Ray."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from sfumato.errors import ConfigError

Needs = Mapping[str, frozenset[str]]
"""The stages that each stage waits for."""


def ordered(needs: Needs) -> list[str]:
    """The stages, each after those that it needs, else in the order in which they were given.

    Raises ConfigError, in one line, for an unknown stage or a cycle.
    """
    for name, wanted in needs.items():
        for other in sorted(wanted):
            if other not in needs:
                raise ConfigError(f"stages.{name}.needs: there is no stage {other!r}{near(other, needs)}")
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ConfigError(f"stages: the stages depend on one another in a cycle: {circle}") from None
    result: list[str] = []
    while len(result) < len(needs):
        placed = set(result)
        result.append(next(name for name in needs if name not in placed and needs[name] <= placed))
    return result


def after(needs: Needs, first: Iterable[str]) -> set[str]:
    """These stages and all that need them, directly or not."""
    found = set(first)
    for name in ordered(needs):
        if needs[name] & found:
            found.add(name)
    return found


def near(word: str, known: Iterable[str]) -> str:
    """The end of an error about a wrong name: the nearest name, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"
