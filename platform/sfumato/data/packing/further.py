"""Further columns while a set is packed: what each value looks like, and how the manifest describes all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfumato.core.columns import ARRAY_TYPES
from sfumato.data.format.arrays import npy_look
from sfumato.data.format.column_sources import ColumnSource, Sources, Value, WeightedTexts
from sfumato.data.format.columns import ColumnInfo
from sfumato.data.format.faults import ImageFault
from sfumato.data.format.images import packed_look
from sfumato.data.format.index import column_digest
from sfumato.data.format.manifest import ImageInfo, Manifest
from sfumato.errors import DataError

HEAD = 1 << 12
"""Bytes within which the header of an npy file ends."""


class Look(NamedTuple):
    """Type and shape of one value; of an image (1 or 3, height, width)."""

    dtype: str
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype} of shape {list(self.shape)}" if self.shape else self.dtype


def look_of(name: str, source: ColumnSource, value: Value) -> Look:
    """Type and shape of a value. Raises ImageFault for one that cannot be used."""
    if source.kind in ("text", "tags"):
        return Look("str")
    if source.kind == "label":
        return Look("int64")
    assert isinstance(value, np.ndarray), "numbers"
    return _checked(name, source, Look(value.dtype.name, value.shape))


def look_of_member(name: str, source: ColumnSource, content: bytes, max_pixels: int) -> Look:
    """Type and shape of a member of a tar. Raises ImageFault for one that cannot be used."""
    if source.kind == "image":
        try:
            width, height, grey = packed_look(content, max_pixels)
        except ImageFault as fault:
            raise ImageFault(f"its {name}: {fault}") from fault
        return Look("uint8", (1 if grey else 3, height, width))
    return _checked(name, source, npy_shape(name, content))


def npy_shape(name: str, content: bytes) -> Look:
    """Type and shape of an npy file. Raises ImageFault."""
    try:
        shape, dtype, start = npy_look(content[:HEAD])
    except (ValueError, EOFError) as error:
        raise ImageFault(f"its {name}: {str(error).splitlines()[0] or 'not an npy file'}") from error
    if start + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize > len(content):
        raise ImageFault(f"its {name}: the npy file ends before its last number")
    return Look(dtype, shape)


def _checked(name: str, source: ColumnSource, look: Look) -> Look:
    wanted = ARRAY_TYPES if source.kind == "array" else ("float32",)
    if look.dtype not in wanted:
        raise ImageFault(
            f"its {name} is {look.dtype}; a column of kind {source.kind} is {' or '.join(wanted)}"
        )
    if source.kind == "vector" and len(look.shape) != 1:
        raise ImageFault(f"its {name} has the shape {list(look.shape)}; a vector has one side")
    return look


def usual(looks: Sequence[Look]) -> Look:
    """The look that most values have."""
    (found, _), *_ = Counter(looks).most_common(1)
    return found


def info_of(source: ColumnSource, looks: Sequence[Look]) -> ColumnInfo | None:
    """The manifest's entry for a column whose values, of a shard or set, look so; None if there are none.

    Their sizes and types are equal by now; images may differ in channels.
    """
    if not looks:
        return None
    look = looks[0]
    shape = look.shape
    if source.kind == "image":
        channels = max(look.shape[0] for look in looks) if source.channels == "auto" else source.channels
        shape = (channels, *shape[1:])
    return ColumnInfo(
        kind=source.kind,
        dtype=look.dtype,
        shape=shape,
        classes=source.classes,
        stored="members" if source.in_members else "index",
        samples=len(looks),
    )


def merged(name: str, parts: Sequence[tuple[ImageInfo, ColumnInfo]], image: ImageInfo) -> ColumnInfo:
    """One description of a column from those of parts of the set, each with the size of its images.

    `image` is the set's usual size. Raises DataError if the parts do not go together.
    """
    usual = next((info for beside, info in parts if beside == image), parts[0][1])
    for beside, info in parts:
        wanted = _beside(usual.shape, image, beside) if info.kind == "image" else usual.shape
        found = info.shape[1:] if info.kind == "image" else info.shape
        if found != (wanted[1:] if info.kind == "image" else wanted) or info.dtype != usual.dtype:
            raise DataError(
                f"column {name}: {Look(info.dtype, info.shape)} beside images of {beside.width}x"
                f"{beside.height}, {Look(usual.dtype, usual.shape)} beside those of {image.width}x"
                f"{image.height}; all samples need one type and one shape, and further images a size that "
                "goes with the image's"
            )
    samples = sum(info.samples for _, info in parts)
    shape = usual.shape
    if usual.kind == "image":
        shape = (max(info.shape[0] for _, info in parts), *shape[1:])
    return usual.model_copy(update={"samples": samples, "shape": shape})


def _beside(shape: tuple[int, ...], image: ImageInfo, beside: ImageInfo) -> tuple[float, ...]:
    """The shape of a further image for an image of another size."""
    channels, height, width = shape
    return channels, height * beside.height / image.height, width * beside.width / image.width


def with_columns(
    manifest: Manifest, parts: Mapping[str, Sequence[tuple[ImageInfo, ColumnInfo]]], folder: str
) -> Manifest:
    """The manifest with its columns, whose indexes are in `folder`, without those that no sample has."""
    columns = {
        name: merged(name, held, manifest.image).model_copy(
            update={"sha256": column_digest(folder, manifest.shards, name)}
        )
        for name, held in parts.items()
        if held
    }
    return manifest.model_copy(update={"columns": columns}) if columns else manifest


def packed_sources(sources: Sources) -> dict[str, ColumnSource]:
    """Where the columns are in a packed tar: members by their names, and fields of the JSON."""
    found = {}
    for name, source in sources.items():
        kept: dict[str, Any] = {"kind": source.kind, "channels": source.channels, "classes": source.classes}
        if source.in_members:
            found[name] = ColumnSource(**kept, member=name)
        else:
            weights = f"{name}_weights" if source.kind == "text" else None
            found[name] = ColumnSource(**kept, field=name, weights=weights)
    return found


def as_fields(name: str, value: Value) -> dict[str, Any]:
    """A value of the index as fields of a sample's JSON."""
    if isinstance(value, WeightedTexts):
        texts: Any = value.texts[0] if len(value.texts) == 1 else value.texts
        return {name: texts} | ({f"{name}_weights": value.weights} if value.weights else {})
    return {name: value.tolist() if isinstance(value, np.ndarray) else value}


def loaded_npy(name: str, content: bytes) -> NDArray[Any]:
    """The array of an npy file. Raises ImageFault; nothing is unpickled."""
    look = npy_shape(name, content)
    _, _, start = npy_look(content[:HEAD])
    count = int(np.prod(look.shape, dtype=np.int64))
    return np.frombuffer(content, look.dtype, count, start).reshape(look.shape)
