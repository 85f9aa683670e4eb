"""Named columns: what a data set holds for every sample besides its image, label and caption.

A column's kind decides how it travels and how transforms treat it:

    kind     in the data set             in a batch
    image    uint8 (C, H, W)             float32 [B, C, H, W] in [-1, 1]; flips and crops move it with `image`
    label    int64                       int64 [B], each below the number of `classes`
    text     one or several strings      `Texts` of length B; if several, one is drawn for each epoch
    tags     a list of words             `Tags` of length B
    vector   float32 (D,)                float32 [B, D]
    camera   float32 of a fixed shape    float32 [B, ...]
    array    any `ARRAY_TYPES`           a tensor [B, ...] of that type
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["image", "label", "text", "tags", "vector", "camera", "array"]
ARRAY_TYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "bool")
_TYPES: Mapping[Kind, tuple[str, ...]] = {
    "image": ("uint8",),
    "label": ("int64",),
    "text": ("str",),
    "tags": ("str",),
    "vector": ("float32",),
    "camera": ("float32",),
    "array": ARRAY_TYPES,
}
NAME = r"^[a-z][a-z0-9_]*$"
RESERVED = ("image", "label")
"""Names of columns that are not further columns: every data set describes them itself."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column. Raises ValueError if kind, type and shape do not match.

    `shape` is that of one sample: (C, H, W) of an image, () of a label, text or tags. `classes` are the
    names of a label's numbers.
    """

    kind: Kind
    dtype: str
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _TYPES:
            raise ValueError(f"kind is one of {', '.join(_TYPES)}; got {self.kind!r}")
        if self.dtype not in _TYPES[self.kind]:
            wanted = " or ".join(_TYPES[self.kind])
            raise ValueError(f"a column of kind {self.kind} is {wanted}; got {self.dtype!r}")
        if any(side < 1 for side in self.shape):
            raise ValueError(f"every side of a shape is at least 1; got {list(self.shape)}")
        if self.kind in _RANKS and len(self.shape) != _RANKS[self.kind]:
            raise ValueError(f"a column of kind {self.kind} has {_SHAPES[self.kind]}; got {list(self.shape)}")
        if self.classes and self.kind != "label":
            raise ValueError(
                f"classes are the names of a label's numbers; this column is of kind {self.kind}"
            )


_RANKS: Mapping[Kind, int] = {"image": 3, "label": 0, "text": 0, "tags": 0, "vector": 1}
_SHAPES: Mapping[Kind, str] = {
    "image": "a shape [channels, height, width]",
    "label": "the shape []",
    "text": "the shape []",
    "tags": "the shape []",
    "vector": "a shape [length]",
}


def check_name(name: str) -> None:
    """Raises ValueError if a further column cannot have this name."""
    if not re.match(NAME, name):
        raise ValueError(f"a column's name has lower-case letters, digits and _; got {name!r}")
    if name in RESERVED:
        raise ValueError(f"{name!r} is a column that every data set has; choose another name")
