"""Puts a trial's values into a recipe, and knows the fields that no sweep may change."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

_FORBIDDEN = {
    "base": "it has been read already",
    "name": "trials are named by the sweep",
    "storage": "trials lie in the sweep's folder",
    "tracking": "trials are recorded next to one another",
    "registry": "trials are not registered",
    "tune": "a sweep does not search itself",
    "parallel": "it changes no result, and Ray plans with the resources of one trial for all",
    "data.path": "figures on different data do not compare",
    "data.source": "figures on different data do not compare",
    "evaluate": "figures of different measurements do not compare (evaluate.sampling may be searched)",
}
_EXCEPT = ("evaluate.sampling",)


def problems(names: Iterable[str]) -> list[str]:
    """One line for each field that a sweep may not change."""
    found = []
    for name in names:
        parts = name.split(".")
        if not all(parts):
            found.append(f"tune.space: {name!r} is no dotted field of a recipe, such as train.batch")
            continue
        heads = [".".join(parts[: count + 1]) for count in range(len(parts))]
        reason = next((_FORBIDDEN[head] for head in heads if head in _FORBIDDEN), None)
        if reason and not any(head in _EXCEPT for head in heads):
            found.append(f"tune.space.{name}: this field cannot be searched: {reason}")
    return found


def with_values(content: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's plain data with these values at their dotted fields.

    Raises ValueError for a field inside something that is no mapping.
    """
    changed = copy.deepcopy(dict(content))
    for name, value in values.items():
        *parents, last = name.split(".")
        place = changed
        for depth, parent in enumerate(parents):
            inner = place.get(parent)
            if inner is None:
                inner = place[parent] = {}
            if not isinstance(inner, dict):
                raise ValueError(
                    f"tune.space.{name}: {'.'.join(parents[: depth + 1])} is {inner!r}, which has no fields"
                )
            place = inner
        place[last] = list(value) if isinstance(value, tuple) else copy.deepcopy(value)
    return changed


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of nested mappings by dotted name, the mappings themselves included."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found[f"{prefix}{key}"] = value
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
    return found
