"""Fields that hold one of several configurations, told apart by their `kind`.

Pydantic's own tagged unions want the tag in every input and put it into the path of every error; here it
may be left out, and an error names the field that stands in the recipe.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from sfumato.core.config import Config
from sfumato.core.validation import shown

UNKNOWN_KEY = "extra_forbidden"
"""Pydantic's type of this error, which is kept: whoever explains errors knows it."""


def by_kind(kinds: Mapping[str, type[Config]], default: str) -> BeforeValidator:
    """Validates a mapping as the class that its `kind` names, or as that of `default` without one."""

    def choose(value: Any) -> Any:
        if not isinstance(value, Mapping):
            if isinstance(value, tuple(kinds.values())):
                return value
            raise ValueError(f"expected a mapping, such as {{kind: {default}}}")
        kind = value.get("kind", default)
        if not isinstance(kind, str) or kind not in kinds:
            near = difflib.get_close_matches(str(kind), kinds, n=1)
            hint = f"did you mean {near[0]!r}? There are" if near else "there are"
            raise ValueError(f"kind: got {shown(kind)}; {hint} {', '.join(kinds)}")
        return read(kinds[kind], value)

    return BeforeValidator(choose)


def read(kind: type[Config], content: Mapping[str, Any]) -> Config:
    """`content` as this class. The error of an unknown key carries in its context the keys that there are."""
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        items = error.errors(include_url=False)
        if not any(item["type"] == UNKNOWN_KEY for item in items):
            raise
        raise ValidationError.from_exception_data(
            error.title, [_told(item, kind) for item in items]
        ) from None


def _told(item: ErrorDetails, kind: type[BaseModel]) -> InitErrorDetails:
    told = InitErrorDetails(type=item["type"], loc=item["loc"], input=item["input"], ctx=item.get("ctx", {}))
    if item["type"] == UNKNOWN_KEY:
        known = _fields_at(kind, item["loc"][:-1])
        told["type"] = PydanticCustomError(UNKNOWN_KEY, "unknown key", {"known": known})
    return told


def _fields_at(kind: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    for part in path:
        nested = kind.model_fields[str(part)].annotation
        assert isinstance(nested, type), part
        assert issubclass(nested, BaseModel), part
        kind = nested
    return list(kind.model_fields)
