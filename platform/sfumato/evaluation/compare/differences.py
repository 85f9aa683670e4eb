"""Where recipes differ, field by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_TOLD = ("name", "storage", "tracking", "registry")
MISSING = "–"


def differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The dotted fields that differ between the recipes, and their values as text in each."""
    flat = [_flat(recipe) for recipe in recipes]
    fields = dict.fromkeys(field for recipe in flat for field in recipe)
    found = {}
    for field in fields:
        values = [recipe.get(field, MISSING) for recipe in flat]
        if len(set(values)) > 1 and field.split(".", 1)[0] not in NOT_TOLD:
            found[field] = values
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        found: dict[str, str] = {}
        for key, part in value.items():
            found |= _flat(part, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: str(value)}
