"""The part of a configuration that decides the numbers a run computes, and thus the run's identity.

Two views of a configuration, both plain data without the fields marked `Neutral`:

- `counted`: every field. A checkpoint records it, so that a later version, which may know more fields, can
  tell whether its recipe is the one that wrote the checkpoint (`agrees`).
- `changed`: the fields that differ from their defaults. Its hash names a run, so adding a field whose default
  keeps the old behaviour does not rename any run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sfumato.core.components import Component
from sfumato.core.config import NeutralBeside, NeutralMark
from sfumato.core.earlier_defaults import marks_of

_NO_DEFAULT = object()
_IDENTIFIES = "digest"
"""Runs of version 0.1 recorded a first stage as just its digest; later ones as a mapping that holds it."""


def counted(config: BaseModel) -> dict[str, Any]:
    """Every field that can change a number, as JSON values."""
    return {name: _plain(getattr(config, name), counted) for name, _ in _fields(config)}


def changed(config: BaseModel) -> dict[str, Any]:
    """The fields that can change a number and differ from their defaults, as JSON values.

    Within one class this loses nothing: an omitted field has its default. If a field has no default, or holds
    another class of configuration than its default, the fields that tell classes apart are kept (`kind`,
    `family`: a `Literal` of one value). If such a field is added to a class later, it is marked `Neutral`.
    """
    found = {}
    for name, info in _fields(config):
        value, default = getattr(config, name), _default(info)
        part = _changed_value(value, named=type(value) is not type(default))
        if default is _NO_DEFAULT or part != _changed_value(default, named=type(value) is not type(default)):
            found[name] = part
    return found


def differences(record: Mapping[str, Any], config: BaseModel) -> list[str]:
    """The fields in which a record of `counted` and `config` differ, dotted, with both values.

    Fields that are newer than the record are left out if they have their first default.
    """
    parts = (record, counted(config), changed(config))
    before, now, moved = (dict(_flat(part, into_lists=False)) for part in parts)
    before = {**_first_defaults(config, into_lists=False), **before}
    young = {key for key in now if not any(key == other or key.startswith(f"{other}.") for other in moved)}
    return [
        f"{key}: {before.get(key, 'absent')} there, {now.get(key, 'absent')} here"
        for key in sorted(before.keys() | now.keys() - (young - before.keys()))
        if before.get(key, _NO_DEFAULT) != now.get(key, _NO_DEFAULT)
    ]


def agrees(record: Mapping[str, Any], config: BaseModel) -> bool:
    """Whether a record of `counted`, from this or an earlier version, agrees with `config`.

    Every recorded field must have its recorded value; a field that is newer than the record, its first
    default (`core.earlier_defaults`).
    """
    now, moved = dict(_flat(counted(config))), dict(_flat(changed(config)))
    before = {}
    for key, value in _flat(record):
        inner = f"{key}.{_IDENTIFIES}"
        before[inner if isinstance(value, str) and inner in now else key] = value
    before = {**_first_defaults(config), **before}
    known = set(before) | {key[:end] for key in before for end, letter in enumerate(key) if letter == "."}
    same = all(now.get(key, _NO_DEFAULT) == value for key, value in before.items())
    return same and not moved.keys() - known


def _changed_value(value: Any, *, named: bool) -> Any:
    """`named` keeps the fields that tell classes of configuration apart."""
    if isinstance(value, Component) and value.bare is not None:
        return value.bare
    if isinstance(value, BaseModel):
        kinds = {name: getattr(value, name) for name, info in _fields(value) if named and _tells_kind(info)}
        return {**kinds, **changed(value)}
    return _plain(value, lambda inner: _changed_value(inner, named=True))


def _first_defaults(content: Any, key: str = "", *, into_lists: bool = True) -> dict[str, Any]:
    """The leaves, by dotted key, of all fields in `content` whose default has changed, with the first one."""
    found: dict[str, Any] = {}
    if isinstance(content, BaseModel):
        for name, info in _fields(content):
            marks, inner = marks_of(info), f"{key}.{name}" if key else name
            if marks:
                found |= _flat({inner: _plain(marks[0].value, counted)}, into_lists=into_lists)
            else:
                found |= _first_defaults(getattr(content, name), inner, into_lists=into_lists)
    elif isinstance(content, list | tuple) and into_lists:
        for index, part in enumerate(content):
            found |= _first_defaults(part, f"{key}.{index}")
    elif isinstance(content, Mapping):
        for name, part in content.items():
            found |= _first_defaults(part, f"{key}.{name}", into_lists=into_lists)
    return found


def _plain(value: Any, of_model: Any) -> Any:
    """JSON values; `of_model` converts configurations, also inside lists and mappings."""
    if isinstance(value, BaseModel):
        bare = value.bare if isinstance(value, Component) else None
        return of_model(value) if bare is None else bare  # recipes have always held just the name
    if isinstance(value, list | tuple):
        return [_plain(inner, of_model) for inner in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, of_model) for key, inner in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), of_model)
            for field in fields(value)
            if of_model is counted or getattr(value, field.name) != _default_of(field)
        }
    return value


def _default_of(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _fields(config: BaseModel) -> Iterator[tuple[str, FieldInfo]]:
    """The fields that are not neutral."""
    for name, info in type(config).model_fields.items():
        if not _neutral(config, name):
            yield name, info


def _neutral(config: BaseModel, name: str) -> bool:
    """Whether the field is marked in the configuration's class or in a base class."""
    for cls in type(config).__mro__:
        info = cls.model_fields.get(name) if issubclass(cls, BaseModel) else None
        for mark in info.metadata if info is not None else ():
            if isinstance(mark, NeutralMark):
                return True
            if isinstance(mark, NeutralBeside) and getattr(config, mark.field) is not None:
                return True
    return False


def _default(info: FieldInfo) -> Any:
    return _NO_DEFAULT if info.is_required() else info.get_default(call_default_factory=True)


def _tells_kind(info: FieldInfo) -> bool:
    return get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1


def _flat(content: Any, key: str = "", *, into_lists: bool = True) -> Iterator[tuple[str, Any]]:
    """The leaves by dotted key. An empty mapping and the length of a list count as leaves."""
    if isinstance(content, list) and into_lists:
        yield f"{key}.length", len(content)
        content = dict(enumerate(content))
    elif key and (content == {} or not isinstance(content, Mapping)):
        yield key, content
        return
    for name, value in content.items():
        yield from _flat(value, f"{key}.{name}" if key else str(name), into_lists=into_lists)
