"""The base of every configuration: strict, frozen, described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A part of the recipe, owned by one component. Unknown keys are errors, values cannot change, and no
    number is infinite or NaN, since bounds such as `gt=0` would let infinity pass."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def fields_at(root: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the fields at a dotted path of nested models, or of the deepest model found on it."""
    model: type[BaseModel] = root
    for part in path:
        info = model.model_fields.get(part)
        nested = (
            [] if info is None else [a for a in (info.annotation, *get_args(info.annotation)) if _is_model(a)]
        )
        if nested:
            model = nested[0]
    return list(model.model_fields)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@dataclass(frozen=True, slots=True)
class NeutralMark:
    """Marks a field that does not change any number a run computes."""


@dataclass(frozen=True, slots=True)
class NeutralBeside:
    """Marks a field that is redundant once `field`, which identifies what both describe, is set."""

    field: str


T = TypeVar("T")

Neutral = Annotated[T, NeutralMark()]
"""`log_every: Neutral[int] = Field(...)`: two runs that differ only in this field are the same run.

A change in any other field makes a different run (`core.identity`). A subclass that declares the field again
need not repeat the mark.
"""
