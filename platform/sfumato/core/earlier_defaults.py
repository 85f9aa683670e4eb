"""Defaults that have changed: what a recipe or a record meant by leaving a field out when it was written.

`SCHEMA` numbers the versions of all defaults together. To change a default, raise `SCHEMA` (once per
release) and mark the field with the value that it had before:

    k: Annotated[int, Before(2, 3)] = Field(5, ...)     # 3 until schema 2

Mark a new field in the same way if its default differs from what earlier versions did. Fields of a `brief`
component must not be marked, because records hold just its name.

Recipes get today's defaults, unless they say `schema: 1`. A run that an earlier version began keeps that
version's defaults (`runtime/runs/earlier.py`). Records (a run's recipe.yaml, a model's card, a checkpoint's
manifest) hold every field, so a field that a record lacks is newer than the record: it has its first value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

SCHEMA = 2
"""Part of every run's identity. Raise it when a default value changes; adding a field changes nothing."""
FIRST = 1


@dataclass(frozen=True, slots=True)
class Before:
    """Marks a field whose default was `value` in all versions before `schema`, back to the previous mark."""

    schema: int
    value: Any


C = TypeVar("C", bound=BaseModel)


def as_of(config: C, schema: int) -> C:
    """`config` with the defaults of that schema in all fields that were not given."""
    if schema >= SCHEMA:
        return config
    changes = {}
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        marks = [] if name in config.model_fields_set else [m for m in marks_of(info) if m.schema > schema]
        then = _inside(marks[0].value if marks else value, schema)
        if then is not value:
            changes[name] = then
    return config.model_copy(update=changes) if changes else config


def marks_of(info: FieldInfo) -> list[Before]:
    """The marks of a field, oldest first."""
    return sorted((mark for mark in info.metadata if isinstance(mark, Before)), key=lambda mark: mark.schema)


def _inside(value: Any, schema: int) -> Any:
    """The same object where nothing in it changes."""
    if isinstance(value, BaseModel):
        return as_of(value, schema)
    if isinstance(value, list | tuple):
        parts = [_inside(part, schema) for part in value]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else type(value)(parts)
    if isinstance(value, Mapping):
        found = {key: _inside(part, schema) for key, part in value.items()}
        return value if all(found[key] is value[key] for key in value) else found
    return value
