"""Emoji as the npm packages `emoji-datasource-VENDOR` hold them: drawings, names and categories.

The folder of an unpacked package (Cal Henderson's emoji-data) has `emoji.json` and `img/VENDOR/64/*.png`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from sfumato.data.format.column_sources import ColumnsOption, ColumnSource, WeightedTexts, check_sources
from sfumato.data.format.columns import TEXT
from sfumato.data.format.faults import Fault
from sfumato.data.packing import source_files
from sfumato.data.packing.folder_names import FolderNames
from sfumato.data.packing.resizing import Look
from sfumato.data.packing.source import I64, Opening, Record, Source, SourceConfig
from sfumato.errors import DataError

LIST = "emoji.json"
COLUMNS: Mapping[str, ColumnSource] = {TEXT: ColumnSource(kind="text", field=TEXT)}
_MOST_BYTES = 1 << 26


class EmojiSource(SourceConfig):
    """One vendor's emoji, with their names as captions and their categories as classes."""

    PRECEDENCE: ClassVar[int] = 60
    TAKES_COLUMNS: ClassVar[bool] = True

    kind: Literal["emoji"] = Field("emoji", description="An unpacked npm package emoji-datasource-VENDOR.")
    path: str = Field(description=f"The folder with {LIST} and img.")
    vendor: Literal["auto", "google", "twitter", "apple", "facebook"] = Field(
        "auto", description="Whose drawings; auto takes the only ones that are there."
    )
    columns: ColumnsOption = Field(
        default_factory=lambda: dict(COLUMNS),
        description="text: several captions an image, its name and its short names; {} keeps the name alone.",
    )

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: Mapping[str, ColumnSource]) -> Mapping[str, ColumnSource]:
        if any(COLUMNS.get(name) != source for name, source in check_sources(columns).items()):
            raise ValueError(f"emoji have the column {TEXT} as it is, or none")
        return columns

    @classmethod
    def recognises(cls, folder: FolderNames) -> bool:
        return folder.has(LIST)

    @property
    def name(self) -> str:
        return "emoji"

    def open(self, opening: Opening) -> Source:
        """Skin tones and emoji that the vendor does not draw are left out."""
        root = Path(self.path).expanduser()
        vendor = self._vendor(root)
        found, faults = [], []
        for entry in _entries(root / LIST):
            if not entry.get(f"has_img_{vendor}"):
                continue
            emoji, problem = _Emoji.of(root, vendor, entry)
            if emoji is None:
                faults.append(Fault(LIST, str(entry.get("short_name")), problem))
            else:
                found.append(emoji)
        if not found:
            raise DataError(f"{root}: {LIST} names no usable drawing of {vendor}")
        labels, classes = source_files.numbered([each.category for each in found], (), str(root))
        return _Drawings(found, labels, classes, faults, f"emoji of {vendor}", several=bool(self.columns))

    def _vendor(self, root: Path) -> str:
        if self.vendor != "auto":
            return self.vendor
        there = sorted(place.name for place in root.glob("img/*") if (place / "64").is_dir())
        if len(there) != 1:
            has = (
                f"drawings of {', '.join(there)}: set vendor to one of them" if there else "no img/VENDOR/64"
            )
            raise DataError(f"{root}: {has}")
        return there[0]


def _entries(path: Path) -> list[dict[str, Any]]:
    """What the list says. Raises DataError."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: more than {_MOST_BYTES:,} bytes; is it the list of a package?")
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not a JSON file") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: wanted a list of emoji; take the package's own {LIST}")
    return entries


@dataclass(frozen=True, slots=True)
class _Emoji:
    """One of them."""

    file: Path
    category: str
    texts: list[str]
    meta: Mapping[str, Any]

    @classmethod
    def of(cls, root: Path, vendor: str, entry: Mapping[str, Any]) -> tuple[_Emoji | None, str]:
        """It, or why it cannot be used."""
        image = entry.get("image")
        if not isinstance(image, str) or Path(image).name != image:
            return None, f"its image is {str(image)[:40]!r}; wanted the name of a file"
        file = root / "img" / vendor / "64" / image
        if not file.is_file() or file.is_symlink():
            return None, f"no file img/{vendor}/64/{image}"
        names = [entry.get("name"), *(entry.get("short_names") or [])]
        texts = [str(name).lower().replace("_", " ").strip() for name in names if name]
        if not texts:
            return None, "it has no name"
        meta = {key: entry.get(key) for key in ("unified", "category", "subcategory")}
        return cls(file, str(entry.get("category")), list(dict.fromkeys(texts)), meta), ""


class _Drawings:
    """Their files."""

    uniform: Look | None = None

    def __init__(
        self,
        found: Sequence[_Emoji],
        labels: I64 | None,
        classes: tuple[str, ...],
        faults: Sequence[Fault],
        description: str,
        *,
        several: bool,
    ) -> None:
        self._found, self._several = found, several
        self.labels, self.classes, self.faults, self.description = labels, classes, faults, description
        self.keys = [each.file.stem for each in found]

    def only(self, rows: Sequence[int]) -> _Drawings:
        labels = None if self.labels is None else self.labels[np.asarray(rows, np.int64)]
        part = [self._found[row] for row in rows]
        return _Drawings(part, labels, self.classes, (), self.description, several=self._several)

    def name(self, row: int) -> str:
        return self._found[row].file.name

    def mark(self, row: int) -> str:
        each = self._found[row]
        return f"{source_files.state(each.file)} {each.texts}"

    def read(self, row: int) -> Record:
        """The first caption is the official name; the others are in the column `text`."""
        each = self._found[row]
        further = {TEXT: WeightedTexts(each.texts)} if self._several else {}
        return Record(each.file, each.texts[0], each.meta, further)


COMPONENT = EmojiSource
