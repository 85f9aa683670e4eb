"""Where the further columns of a set come from, and what their values may be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sfumato.core.columns import ARRAY_TYPES, Kind, check_name
from sfumato.core.config import Config
from sfumato.data.format.columns import TEXT
from sfumato.data.format.faults import ImageFault

_BY_FIELD_ALONE = ("tags", "label")
_MOST = 100_000
"""Words or numbers in one value."""


def _words(value: Any) -> Any:
    """`a,b,c` from a command line."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


class ColumnSource(Config):
    """One further column: `{kind: image, member: line.png}`, `{kind: tags, field: keywords}`."""

    kind: Kind = Field(description="image, label, text, tags, vector, camera or array.")
    member: str | None = Field(
        None,
        min_length=1,
        description="Extension of a member of a tar, or of a file next to the image: line.png for "
        "KEY.line.png; line takes line.png, line.jpg, ... . Arrays are npy files.",
    )
    field: str | None = Field(
        None, min_length=1, description="Field of the JSON metadata; of a table or listing, the column."
    )
    weights: str | None = Field(
        None, description="Of several texts: the field or column of their weights; null draws evenly."
    )
    dtype: str | None = Field(
        None, description=f"Of an array from a field: one of {', '.join(ARRAY_TYPES)}; null is float32."
    )
    channels: Literal["auto", 1, 3] = Field(
        "auto", description="Of an image: 1 grey, 3 RGB; auto is 3 if any is coloured."
    )
    classes: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (), description="Of a label: names of the classes in order; empty: the values are numbers."
    )

    @model_validator(mode="after")
    def _one_place(self) -> ColumnSource:
        if (self.member is None) == (self.field is None):
            raise ValueError("say where it comes from: either member, or field")
        if self.member is not None and self.kind in _BY_FIELD_ALONE:
            raise ValueError(f"a column of kind {self.kind} comes from a field, not from a member; set field")
        if self.weights is not None and (self.kind != "text" or self.field is None):
            raise ValueError("weights apply only to several texts in a field; leave them out")
        if self.dtype is not None and (self.kind != "array" or self.dtype not in ARRAY_TYPES):
            raise ValueError(f"dtype applies only to an array from a field: one of {', '.join(ARRAY_TYPES)}")
        if self.classes and self.kind != "label":
            raise ValueError("classes apply only to a label; leave them out")
        return self

    @property
    def in_members(self) -> bool:
        """Whether its values are members of a packed tar; the others are in the index."""
        return self.kind in ("image", "array") or (self.member is not None and self.kind != "text")


Sources = Mapping[str, ColumnSource]


def _given(value: Any) -> Any:
    """A mapping as text, from a command line."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(
            "columns are given as {name: {kind: image, member: line.png}}; this is not YAML"
        ) from error


def check_sources(sources: Sources) -> Sources:
    """Raises ValueError for names that no further column can have."""
    for name, source in sources.items():
        check_name(name)
        if name == TEXT and source.kind != "text":
            raise ValueError("the column text must be of kind text")
    return sources


class WeightedTexts(NamedTuple):
    """Texts of one sample; without weights, all are equally likely."""

    texts: list[str]
    weights: list[float] | None = None


ColumnsOption = Annotated[Sources, BeforeValidator(_given), AfterValidator(check_sources)]
Value = WeightedTexts | list[str] | int | NDArray[Any]


def value_of(name: str, source: ColumnSource, raw: Any, weights: Any = None) -> Value | None:
    """A value of the index or an array, from a JSON field or a table cell; None if that is empty.

    Raises ImageFault for a value that does not fit the column.
    """
    if raw is None:
        return None
    if source.kind == "text":
        return _texts(name, raw, weights)
    if source.kind == "tags":
        return _tags(name, raw)
    if source.kind == "label":
        return _label(name, raw, source.classes)
    return numbers(name, raw, source.dtype or "float32", flat=source.kind == "vector")


def _texts(name: str, raw: Any, weights: Any) -> WeightedTexts | None:
    texts = _several(raw) if isinstance(raw, str) else _listed(name, raw, "a text, or a list of texts")
    if not all(isinstance(text, str) for text in texts):
        raise ImageFault(f"its {name} is {str(raw)[:40]!r}; wanted a text, or a list of texts")
    texts = [text.strip() for text in texts]
    if not texts:
        return None
    if weights is None:
        return WeightedTexts(texts)
    factors = [float(factor) for factor in numbers(f"{name} weights", weights, "float64", flat=True)]
    if len(factors) != len(texts) or min(factors) < 0 or sum(factors) <= 0:
        raise ImageFault(
            f"its {name} has {len(texts)} texts and the weights {factors}; wanted one for each, not negative"
        )
    return WeightedTexts(texts, factors)


def _several(text: str) -> list[str]:
    """The texts in a cell of a table: a JSON list of texts means several, anything else is one."""
    if text.startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return [text]
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return found
    return [text]


def _tags(name: str, raw: Any) -> list[str]:
    if isinstance(raw, str) and not raw.lstrip().startswith("["):
        return [word.strip() for word in raw.split(",") if word.strip()]
    words = _listed(name, raw, "a list of words")
    if not all(isinstance(word, str) for word in words):
        raise ImageFault(f"its {name} is {str(raw)[:40]!r}; wanted a list of words")
    return list(words)


def _label(name: str, raw: Any, classes: tuple[str, ...]) -> int:
    if isinstance(raw, str) and raw in classes:
        return classes.index(raw)
    if isinstance(raw, str) and raw.isdigit() and len(raw) <= 9:
        raw = int(raw)
    if isinstance(raw, bool) or not isinstance(raw, int) or raw < 0:
        wanted = f"one of {', '.join(classes[:8])}" if classes else "a class number"
        raise ImageFault(f"its {name} is {str(raw)[:40]!r}; wanted {wanted}")
    if classes and raw >= len(classes):
        raise ImageFault(f"its {name} is {raw}, out of range 0..{len(classes) - 1}")
    return raw


def numbers(name: str, raw: Any, dtype: str, *, flat: bool) -> NDArray[Any]:
    """An array from a list of numbers, nested unless `flat`. Raises ImageFault."""
    if dtype == "bfloat16":
        raise ImageFault(
            f"its {name}: NumPy files have no bfloat16; `sfumato precompute` writes such columns"
        )
    wanted = "a list of numbers"
    try:
        found = np.array(_listed(name, raw, wanted), np.float64 if "float" in dtype else np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ImageFault(f"its {name} is {str(raw)[:40]!r}; wanted {wanted}") from error
    if not found.size or found.size > _MOST or (flat and found.ndim != 1):
        raise ImageFault(f"its {name} has the shape {list(found.shape)}; wanted {wanted}")
    with np.errstate(over="ignore"):
        values = found.astype(dtype)
    if not np.isfinite(values).all() or ("float" not in dtype and (values != found).any()):
        raise ImageFault(f"its {name} holds a number that {dtype} cannot hold")
    return values


def _listed(name: str, raw: Any, wanted: str) -> list[Any]:
    if isinstance(raw, str):  # a cell of a CSV file
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):
            raw = None
    if isinstance(raw, np.ndarray):
        raw = raw.tolist()
    if not isinstance(raw, list | tuple) or len(raw) > _MOST:
        raise ImageFault(f"its {name} is {str(raw)[:40]!r}; wanted {wanted}")
    return list(raw)
