"""The samples of a WebDataset shard: which members belong together, and which cannot be used and why.

A shard may come from anywhere. Nothing in it is extracted, followed or unpickled; a suspicious sample
(a link, a path that leads outside, a repeated key) is a `Fault`, not an error, so that
the caller decides whether the rest may be used.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import Field

from sfumato.core.config import Config
from sfumato.data.format.column_sources import (
    ColumnsOption,
    ColumnSource,
    Value,
    WeightedTexts,
    value_of,
)
from sfumato.data.format.columns import TEXT
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.tar import Member, RandomAccess, scan

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "npy")
PICKLES = ("pkl", "pickle", "pyd", "pt", "pth", "joblib", "dill")
_MAX_IMAGE = 1 << 28
_MAX_LABEL = 1 << 10
_MAX_TEXT = 1 << 20
_MAX_JSON = 1 << 22


class Fields(Config):
    """Which members of a sample mean what."""

    image: str | None = Field(
        None,
        description="Extension of the image, for example google.png if samples have several; null takes "
        f"the only one of {', '.join(IMAGE_EXTENSIONS)}.",
    )
    label: str = Field(
        "cls",
        description="Where the class is: an extension that holds its number, or json.NAME for a field of the "
        "JSON metadata; samples without it have no class.",
    )
    caption: str = Field(
        "txt", description="Where the caption is: an extension that holds text, or json.NAME as above."
    )
    columns: ColumnsOption = Field(
        default_factory=dict,
        description="Further columns by name, each with its kind and a member or a field, for example "
        "{control: {kind: image, member: line.png}, tags: {kind: tags, field: keywords}}.",
    )


class Row(NamedTuple):
    """One usable sample: its key, its image's place, and the content read from its other members."""

    key: str
    image: Member
    extension: str
    label: int | str | None
    caption: str | None
    meta: dict[str, Any] | None
    extra: Mapping[str, Member | Value] = MappingProxyType({})
    """Its further columns: values, or members of the tar."""


@dataclass
class SampleReader:
    """Reads the samples of shards; `ignored` counts, by extension, the members that nothing reads."""

    fields: Fields = field(default_factory=Fields)
    ignored: Counter[str] = field(default_factory=Counter)

    def rows(self, file: RandomAccess, total: int, where: str) -> Iterator[Row | Fault]:
        """Every sample of a tar in order. Raises DataError if the tar as a whole is damaged."""
        seen: set[str] = set()
        for key, members in grouped(scan(file, total, where)):
            try:
                if key in seen:
                    raise ImageFault("its key has appeared before in this shard")
                seen.add(key)
                yield self._row(file, key, members)
            except ImageFault as fault:
                yield Fault(where, key if key and key.isprintable() else ascii(key), str(fault))

    def _row(self, file: RandomAccess, key: str, members: list[tuple[str, Member]]) -> Row:
        _check_name(key)
        found: dict[str, Member] = {}
        for extension, member in members:
            if extension in found:
                raise ImageFault(f"it holds .{extension} twice")
            if member.problem:
                raise ImageFault(f".{extension} is {member.problem}")
            found[extension] = member
        name = self._image(found)
        if found[name].size == 0:
            raise ImageFault("its image has 0 bytes")
        _check_bytes(name, found[name], _MAX_IMAGE)
        meta = _meta(file, found.get("json"))
        label = self._label(file, found, meta)
        extra, used = self._extra(file, found, meta)
        self._count_ignored(found, {name, *used})
        return Row(key, found[name], name, label, self._caption(file, found, meta, extra), meta, extra)

    def _extra(
        self, file: RandomAccess, found: dict[str, Member], meta: Any
    ) -> tuple[dict[str, Member | Value], set[str]]:
        """The further columns that the sample has, and the members that they take."""
        extra: dict[str, Member | Value] = {}
        used: set[str] = set()
        for name, source in self.fields.columns.items():
            if source.member is not None:
                extension = next((e for e in extensions(source.member) if e in found), None)
                if extension is None:
                    continue
                used.add(extension)
                extra[name] = _of_member(file, extension, found[extension], source)
                continue
            assert source.field is not None, "either a member or a field"
            weights = None if source.weights is None else (meta or {}).get(source.weights)
            value = value_of(name, source, (meta or {}).get(source.field), weights)
            if value is not None:
                extra[name] = value
        return extra, used

    def _image(self, found: dict[str, Member]) -> str:
        held = ", ".join(sorted(found))
        if self.fields.image is not None:
            if self.fields.image not in found:
                raise ImageFault(f"wanted an image .{self.fields.image}, it holds {held}")
            return self.fields.image
        images = [name for name in found if name in IMAGE_EXTENSIONS]
        if len(images) != 1:
            raise ImageFault(f"wanted one image of {', '.join(IMAGE_EXTENSIONS)}, it holds {held}")
        return images[0]

    def _label(self, file: RandomAccess, found: dict[str, Member], meta: Any) -> int | str | None:
        if self.fields.label.startswith("json."):
            return _json_label(meta, self.fields.label.removeprefix("json."))
        member = found.get(self.fields.label)
        if member is None:
            return None
        text = _content(file, self.fields.label, member, _MAX_LABEL).strip()
        if not (text.isdigit() and len(text) <= 9):
            raise ImageFault(f"its {self.fields.label} is {text[:20]!r}; wanted a class number")
        return int(text)

    def _caption(
        self, file: RandomAccess, found: dict[str, Member], meta: Any, extra: Mapping[str, Any]
    ) -> str | None:
        if TEXT in self.fields.columns:  # several: the first represents the sample if one is wanted
            return extra[TEXT].texts[0] if TEXT in extra else None
        if self.fields.caption.startswith("json."):
            value = (meta or {}).get(self.fields.caption.removeprefix("json."))
            return None if value is None else str(value)
        member = found.get(self.fields.caption)
        if member is None:
            return None
        return _text(file, self.fields.caption, member)

    def _count_ignored(self, found: dict[str, Member], taken: set[str]) -> None:
        used = {*taken, "json", self.fields.label, self.fields.caption}
        self.ignored.update(name for name in found if name not in used)


def extensions(member: str) -> tuple[str, ...]:
    """The extensions that a column's `member` may mean: itself, or itself as an image or array."""
    return (member.lower(), *(f"{member.lower()}.{extension}" for extension in IMAGE_EXTENSIONS))


def _of_member(file: RandomAccess, extension: str, member: Member, source: ColumnSource) -> Member | Value:
    if source.kind == "text":
        return WeightedTexts([_text(file, extension, member)])
    if member.size == 0:
        raise ImageFault(f"its {extension} has 0 bytes")
    _check_bytes(extension, member, _MAX_IMAGE)
    return member


def _text(file: RandomAccess, extension: str, member: Member) -> str:
    try:
        return _content(file, extension, member, _MAX_TEXT).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ImageFault(f"its {extension} is not UTF-8 text") from error


def grouped(members: Iterator[Member]) -> Iterator[tuple[str, list[tuple[str, Member]]]]:
    """Consecutive members with one key: WebDataset's rule, key and extension part at the first dot."""
    key: str | None = None
    sample: list[tuple[str, Member]] = []
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        this = folder.removeprefix("./") + slash + stem if folder != "." else stem
        if this != key and sample:
            assert key is not None
            yield key, sample
            sample = []
        key = this
        sample.append((extension.lower(), member))
    if key is not None:
        yield key, sample


def _check_name(key: str) -> None:
    parts = key.split("/")
    if key.startswith("/") or ".." in parts or "\\" in key:
        raise ImageFault("its name leads out of the data set")
    if not key.isprintable():  # also if not UTF-8
        raise ImageFault("its name has characters that are not text")
    if not parts[-1]:
        raise ImageFault("its name has no key before the first dot")


def _check_bytes(name: str, member: Member, limit: int) -> None:
    if member.size > limit:
        raise ImageFault(f"its .{name} has {member.size:,} bytes, more than {limit:,}")


def _content(file: RandomAccess, name: str, member: Member, limit: int) -> bytes:
    _check_bytes(name, member, limit)
    file.seek(member.offset)
    return bytes(file.read(member.size))


def _meta(file: RandomAccess, member: Member | None) -> dict[str, Any] | None:
    if member is None:
        return None
    return parse_meta(_content(file, "json", member, _MAX_JSON))


def parse_meta(content: bytes) -> dict[str, Any]:
    """A JSON object. Raises ImageFault."""
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ImageFault("its json cannot be read") from error
    if not isinstance(meta, dict):
        raise ImageFault("its json is not an object")
    return meta


def _json_label(meta: Any, name: str) -> int | str | None:
    value = (meta or {}).get(name)
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        return value
    raise ImageFault(f"its json has {name}={str(value)[:20]!r}; wanted a class name or number")
