"""Explains a user's invalid values, one line per problem, in the terms of YAML.

Pydantic speaks to programmers ("input should be a valid tuple"); authors of recipes know lists,
mappings, whole numbers, texts, true, false and null.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_LABEL = re.compile(
    r".*\[.*|str|int|float|bool|none|constrained-.*|function-.*|lax-or-strict.*|nullable.*|is-instance.*"
)
"""Labels that pydantic adds to the location of a problem: which of several types it tried."""
_LONGEST = 60
_MOST_KEYS = 8


def explain(
    error: ValidationError, root: type[BaseModel] | None = None, prefix: Sequence[str] = ()
) -> list[str]:
    """One line per problem: the dotted field, the expected and the given value, and a close match.

    `root` is the class that was read; it defines the known keys. `prefix` is the location of its content.
    """
    lines = []
    for place, items in _by_place(error.errors(include_url=False)).items():
        where = ".".join((*prefix, *place))
        said = _said(items, root)
        lines.append(f"{where}: {said}" if where else said)
    return lines


def first_problem(error: ValidationError, root: type[BaseModel] | None = None) -> str:
    """The first line of `explain`."""
    return explain(error, root)[0]


def shown(value: Any) -> str:
    """A value as YAML would show it, shortened."""
    if isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    elif isinstance(value, float) and not math.isfinite(value):
        text = str(value)
    elif isinstance(value, str | int | float):
        text = repr(value)
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(_plain(inner) for inner in value) + "]"
    else:
        text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def _plain(value: Any) -> str:
    """A text, without quotes if YAML needs none."""
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.-]*", value) else shown(value)


def _by_place(items: Sequence[ErrorDetails]) -> dict[tuple[str, ...], list[ErrorDetails]]:
    """The problems by field; for a value of one of several types, only the problems inside it."""
    found: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for item in items:
        place = tuple(str(part) for part in item["loc"] if not _is_label(part))
        found.setdefault(place, []).append(item)
    for place, there in list(found.items()):
        deeper = any(len(other) > len(place) and other[: len(place)] == place for other in found)
        if deeper and all(_is_label(item["loc"][-1]) or item["type"] == "too_short" for item in there):
            del found[place]
    return found


def _is_label(part: str | int) -> bool:
    return isinstance(part, str) and _LABEL.fullmatch(part) is not None


def _said(items: Sequence[ErrorDetails], root: type[BaseModel] | None) -> str:
    """The problem of one field; several items mean that it may have one of several types."""
    if len(items) == 1:
        return _line(items[0], root)
    bounds = [item for item in items if not _wanted(item, root).startswith("expected ")]
    if bounds:  # its type is right
        return _line(bounds[0], root)
    wanted = [_wanted(item, root).removeprefix("expected ").partition(", for example ")[0] for item in items]
    return f"expected {' or '.join(dict.fromkeys(wanted))}{_got(items[0])}"


def _line(item: ErrorDetails, root: type[BaseModel] | None) -> str:
    kind, ctx = item["type"], item.get("ctx", {})
    if kind == "missing":
        return "required, but not given"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        # If a field may hold one of several kinds, only the chosen kind knows its keys.
        known = ctx.get("known") or _keys_around(root, item["loc"][:-1])
        return f"unknown key{_hint(str(item['loc'][-1]), known)}"
    if kind == "literal_error":
        expected = str(ctx.get("expected", ""))
        legal = [part.strip(" '\"") for part in expected.replace(" or ", ",").split(",")]
        near = difflib.get_close_matches(str(item["input"]), legal, 1, 0.4)
        return f"got {shown(item['input'])}, expected {expected}" + (
            f"; did you mean {near[0]!r}?" if near else ""
        )
    if kind == "union_tag_invalid":
        legal = re.findall(r"'([^']*)'", str(ctx["expected_tags"]))
        near = difflib.get_close_matches(str(ctx["tag"]), legal, 1, 0.5)
        hint = f"did you mean {near[0]!r}? There are" if near else "there are"
        name = _unquoted(ctx["discriminator"])
        value = item["input"].get(name) if isinstance(item["input"], Mapping) else ctx["tag"]
        return f"there is no {name} {shown(value)}; {hint} {', '.join(legal)}"
    return _wanted(item, root) + _got(item)


def _wanted(item: ErrorDetails, root: type[BaseModel] | None) -> str:
    """The expectation that the value fails to meet."""
    kind, ctx, value = item["type"], item.get("ctx", {}), item["input"]
    if kind in _MAPPINGS:
        wanted = f"a mapping{_example_of_mapping(root, item['loc'])}"
    elif kind in _LISTS:
        wanted = f"a list, for example {'[1, 2]' if value is None else shown([value])}"
    elif kind in _TEXTS:
        wanted = f"a text, for example '{shown(value) if isinstance(value, int | float) else 'name'}'"
    elif kind == "literal_error":
        wanted = str(ctx.get("expected", ""))
    elif kind in _SAID:
        return _SAID[kind](ctx)
    else:
        said = re.sub(r"^(Value error|Assertion failed), ", "", item["msg"])
        return f"{said[:1].lower()}{said[1:]}"
    return f"expected {wanted}"


def _got(item: ErrorDetails) -> str:
    if item["type"] in ("union_tag_not_found", "json_invalid"):
        return ""
    value = item["input"]
    if isinstance(value, Mapping):  # usually far too long to show
        return (
            ", got a mapping" if item["type"] not in ("value_error", "assertion_error", "too_short") else ""
        )
    return f", got {shown(value)}"


def _hint(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known keys: {', '.join(sorted(known))}" if known else ""


def _unquoted(text: object) -> str:
    return str(text).strip("'")


def _many(count: object, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what.replace('entry', 'entrie')}s"


_MAPPINGS = frozenset(
    {"dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type", "is_instance_of"}
)
_LISTS = frozenset({"list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"})
_TEXTS = frozenset({"string_type", "string_sub_type", "string_unicode", "path_type"})
_WHOLE = "expected a whole number, for example 8"
_NUMBER = "expected a number, for example 0.5"
_TRUTH = "expected true or false"
_SAID: dict[str, Callable[[Mapping[str, Any]], str]] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), lambda ctx: _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), lambda ctx: _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), lambda ctx: _TRUTH),
    "finite_number": lambda ctx: "expected a finite number",
    "none_required": lambda ctx: "expected null",
    "greater_than": lambda ctx: f"must be greater than {ctx['gt']:g}",
    "greater_than_equal": lambda ctx: f"must be at least {ctx['ge']:g}",
    "less_than": lambda ctx: f"must be less than {ctx['lt']:g}",
    "less_than_equal": lambda ctx: f"must be at most {ctx['le']:g}",
    "multiple_of": lambda ctx: f"must be a multiple of {ctx['multiple_of']}",
    "too_short": lambda ctx: f"needs at least {_many(ctx['min_length'], 'entry')}",
    "too_long": lambda ctx: f"may have at most {_many(ctx['max_length'], 'entry')}",
    "string_too_short": lambda ctx: f"needs at least {_many(ctx['min_length'], 'character')}",
    "string_too_long": lambda ctx: f"may have at most {_many(ctx['max_length'], 'character')}",
    "string_pattern_mismatch": lambda ctx: f"must match the pattern {ctx['pattern']}",
    "enum": lambda ctx: f"expected {ctx['expected']}",
    "invalid_key": lambda ctx: "keys must be texts",
    "union_tag_not_found": lambda ctx: (
        f"needs the key {_unquoted(ctx['discriminator'])}, which selects what it is"
    ),
    "json_invalid": lambda ctx: f"not valid JSON ({ctx['error']})",
}


def _example_of_mapping(root: type[BaseModel] | None, loc: Sequence[str | int]) -> str:
    models = [] if root is None else [part for part in _at(root, loc) if _is_model(part)]
    tagged = [tag for model in models for tag in _tags(model)]
    if tagged:
        return f", for example {{{tagged[0][0]}: {tagged[0][1]}}}"
    keys = [name for model in models for name in model.model_fields]
    if not keys:
        return ", for example {key: value}"
    more = ", ..." if len(keys) > _MOST_KEYS else ""
    return f" with keys such as {', '.join(keys[:_MOST_KEYS])}{more}"


def _keys_around(root: type[BaseModel] | None, loc: Sequence[str | int]) -> list[str]:
    """The keys of the configuration at a location, or of the nearest one around it."""
    for end in range(len(loc), -1, -1):
        models = [] if root is None else [part for part in _at(root, loc[:end]) if _is_model(part)]
        if models:
            return [name for model in models for name in model.model_fields]
    return []


def _at(annotation: Any, loc: Sequence[str | int]) -> Iterator[Any]:
    """The types that a value at this location may have, without unions and annotations."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _at(arguments[0], loc)
    elif origin in (Union, UnionType):
        for option in arguments:
            yield from _at(option, loc)
    elif not loc:
        yield annotation
    elif _is_model(annotation):
        yield from _in_model(annotation, loc)
    elif origin in (tuple, list):
        yield from _at(arguments[0], loc[1:])
    elif origin is dict:
        yield from _at(arguments[1], loc[1:])


def _in_model(model: type[BaseModel], loc: Sequence[str | int]) -> Iterator[Any]:
    if (field := model.model_fields.get(str(loc[0]))) is not None:
        yield from _at(field.annotation, loc[1:])
    elif str(loc[0]) in (tag for _, tag in _tags(model)):  # how pydantic marks the kind it chose
        yield from _at(model, loc[1:])


def _tags(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """The fields that identify a kind because they allow one value only: their names and values."""
    for name, info in model.model_fields.items():
        if get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1:
            yield name, str(get_args(info.annotation)[0])


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
