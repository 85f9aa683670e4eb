"""Finds the meaning of a table's columns: by option, Hugging Face's metadata, or their usual names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from sfumato.data.format.column_sources import Sources
from sfumato.data.packing.source import SourceConfig, Words
from sfumato.errors import DataError

_IMAGE = ("image", "img", "jpg", "png", "webp", "picture", "pixel_values")
_LABEL = ("label", "labels", "class", "fine_label")
_CAPTION = ("caption", "text", "txt", "prompt")


class ColumnOptions(SourceConfig):
    """Options common to all sources of tables."""

    TAKES_COLUMNS: ClassVar[bool] = True

    image: str | None = Field(
        None, description="Column of the images; null: found by its type or usual name."
    )
    label: str | None = Field(
        None, description="Column of the classes, numbers or names; null: the usual one; none: no classes."
    )
    caption: str | None = Field(
        None, description="Column of the captions; null: the usual one; none: no captions."
    )
    key: str | None = Field(None, description="Column of unique names; null: rows are numbered.")
    keep: Words = Field((), description="Columns to keep as the samples' JSON metadata.")
    classes: Words = Field((), description="Names of the classes in order; empty: as the table gives them.")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table by their meaning."""

    image: str
    label: str | None
    caption: str | None
    key: str | None
    keep: tuple[str, ...]
    class_names: tuple[str, ...]
    further: Sources = field(default_factory=dict)

    @property
    def all(self) -> list[str]:
        """Every needed column, once."""
        further = [name for source in self.further.values() for name in (source.field, source.weights)]
        named = (self.image, self.label, self.caption, self.key, *self.keep, *further)
        return list(dict.fromkeys(name for name in named if name is not None))


def chosen(options: ColumnOptions, schema: pa.Schema, where: str) -> Columns:
    """Raises DataError for a column that is missing or has an unsuitable type."""
    features = _features(schema)
    for name in options.keep:
        _present(name, schema, "keep", where)
    label = _one(options.label, _LABEL, schema, "label", where)
    return Columns(
        _image(options.image, schema, features, where),
        label,
        _one(options.caption, _CAPTION, schema, "caption", where),
        None if options.key is None else _present(options.key, schema, "key", where),
        options.keep,
        options.classes or _class_names(features, label),
        _further(options.columns, schema, where),
    )


def _further(sources: Sources, schema: pa.Schema, where: str) -> Sources:
    for name, source in sources.items():
        if source.field is None:
            raise DataError(f"{where}: columns: {name}: give the field, a column of the table")
        _present(source.field, schema, f"columns: {name}", where)
        if source.weights is not None:
            _present(source.weights, schema, f"columns: {name}: weights", where)
    return sources


def _present(name: str, schema: pa.Schema, option: str, where: str) -> str:
    if name not in schema.names:
        raise DataError(f"{where}: no column {name!r} (option {option}); it has {', '.join(schema.names)}")
    return name


def _one(asked: str | None, usual: Sequence[str], schema: pa.Schema, option: str, where: str) -> str | None:
    if asked == "none":
        return None
    if asked is not None:
        return _present(asked, schema, option, where)
    return next((name for name in usual if name in schema.names), None)


def _image(asked: str | None, schema: pa.Schema, features: Mapping[str, Any], where: str) -> str:
    told = [name for name, feature in features.items() if _kind(feature) == "Image" and name in schema.names]
    fitting = [field.name for field in schema if holds_images(field.type)]
    usual = [name for name in _IMAGE if name in fitting]
    if asked is None:
        found = [*told, *usual, *fitting][:1]
        if not found:
            raise DataError(
                f"{where}: no column of images (bytes, or bytes and path); it has {_typed(schema)}"
            )
        return str(found[0])
    _present(asked, schema, "image", where)
    if asked not in fitting:
        raise DataError(
            f"{where}: column {asked} is {schema.field(asked).type}; images are bytes, or bytes and path"
        )
    return asked


def holds_images(kind: pa.DataType) -> bool:
    """Bytes, or the struct of `bytes` and `path` that Hugging Face writes."""
    if pa.types.is_struct(kind):
        return "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _typed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """Hugging Face's description of the columns, from the schema's metadata."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _class_names(features: Mapping[str, Any], label: str | None) -> tuple[str, ...]:
    feature = features.get(label or "")
    names = feature.get("names") if isinstance(feature, dict) and _kind(feature) == "ClassLabel" else None
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
