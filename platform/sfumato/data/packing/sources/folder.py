"""Images from a folder: class subfolders become labels; a `.txt` next to an image is its caption, a `.json`
its metadata."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field

from sfumato.data.format.column_sources import ColumnSource, Sources, WeightedTexts, value_of
from sfumato.data.format.columns import TEXT
from sfumato.data.format.faults import Fault, ImageFault
from sfumato.data.format.samples import extensions
from sfumato.data.packing import source_files
from sfumato.data.packing.folder_names import FolderNames
from sfumato.data.packing.resizing import Look
from sfumato.data.packing.source import I64, Further, Opening, Record, Source, SourceConfig
from sfumato.errors import DataError

_BESIDE = (".txt", ".json")
_NONE: Sources = MappingProxyType({})
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class FolderSource(SourceConfig):
    """A folder of images, at any depth."""

    TAKES_COLUMNS: ClassVar[bool] = True
    FILES: ClassVar[tuple[str, ...]] = ("",)
    PRECEDENCE: ClassVar[int] = 0

    kind: Literal["folder"] = Field("folder", description="A folder of image files.")
    path: str = Field(description="The folder.")
    labels: str = Field(
        "subfolders",
        pattern=r"^(subfolders|none|json\..+)$",
        description="Where the classes are: subfolders (their names), none, or json.NAME for a field of the "
        "JSON file next to each image.",
    )
    caption: str = Field(
        "txt",
        pattern=r"^(txt|json\..+)$",
        description="Where the captions are: txt for a text file next to each image, or json.NAME.",
    )

    @classmethod
    def recognises(cls, folder: FolderNames) -> bool:
        return True

    @property
    def name(self) -> str:
        return Path(self.path).expanduser().resolve().name

    def open(self, opening: Opening) -> Source:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise DataError(f"{root}: no such folder")
        files = sorted(_files(root))
        images = [file for file in files if file.lower().endswith(SUFFIXES)]
        found = [file for file in images if not _is_member(file, self.columns)]
        unknown = _unknown(files, self.columns)
        if not found:
            there = f"; there are {unknown}" if unknown else ""
            raise DataError(f"{root}: no images found (looked for {' '.join(SUFFIXES)} at any depth){there}")
        if unknown:
            opening.note(f"{root}: left out files that are not images: {unknown}")
        good, faults = _usable(root, found)
        labels, classes = self._labels(root, good)
        description = f"folder {root.resolve().name}"
        return FileSource(
            root, good, labels, classes, self.caption, faults, description, columns=self.columns
        )

    def _labels(self, root: Path, found: Sequence[str]) -> tuple[I64 | None, tuple[str, ...]]:
        if self.labels == "none":
            return None, ()
        if self.labels == "subfolders":
            names = _subfolders(root, found)
            return source_files.numbered(names, (), str(root)) if names else (None, ())
        name = self.labels.removeprefix("json.")
        return source_files.numbered([_json_label(root, file, name) for file in found], (), str(root))


class FileSource:
    """Files below a folder, with class numbers int64 [N] or None; captions and metadata are next to them."""

    uniform: Look | None = None

    def __init__(
        self,
        root: Path,
        found: Sequence[str],
        labels: I64 | None,
        classes: tuple[str, ...],
        caption: str,
        faults: Sequence[Fault],
        description: str,
        keys: Sequence[str] | None = None,
        columns: Sources = _NONE,
    ) -> None:
        self._root, self._files, self._caption, self._columns = root, found, caption, columns
        self.labels, self.classes, self.faults, self.description = labels, classes, faults, description
        self.keys = (
            source_files.unique_keys(map(source_files.without_suffix, found)) if keys is None else keys
        )

    def only(self, rows: Sequence[int]) -> FileSource:
        return FileSource(
            self._root,
            [self._files[row] for row in rows],
            None if self.labels is None else self.labels[list(rows)],
            self.classes,
            self._caption,
            (),
            self.description,
            [self.keys[row] for row in rows],
            self._columns,
        )

    def name(self, row: int) -> str:
        return self._files[row]

    def mark(self, row: int) -> str:
        image = self._root / self._files[row]
        beside = [image.with_suffix(suffix) for suffix in (".txt", ".json")]
        beside += [path for source in self._columns.values() if (path := _member(image, source)) is not None]
        return "|".join(source_files.state(path) for path in (image, *beside))

    def read(self, row: int) -> Record:
        image = self._root / self._files[row]
        meta = source_files.sidecar_meta(self._root, image.with_suffix(".json"))
        extra = self._extra(image, meta or {})
        if TEXT in self._columns:
            texts = extra.get(TEXT)
            return Record(image, texts.texts[0] if isinstance(texts, WeightedTexts) else None, meta, extra)
        if self._caption == "txt":
            return Record(
                image, source_files.sidecar_text(self._root, image.with_suffix(".txt")), meta, extra
            )
        said = (meta or {}).get(self._caption.removeprefix("json."))
        return Record(image, None if said is None else str(said), meta, extra)

    def _extra(self, image: Path, meta: Mapping[str, Any]) -> dict[str, Further]:
        """The values of further columns in the files next to an image."""
        extra: dict[str, Further] = {}
        for name, source in self._columns.items():
            value: Further | None
            if source.field is not None:
                weights = None if source.weights is None else meta.get(source.weights)
                value = value_of(name, source, meta.get(source.field), weights)
            else:
                path = _member(image, source)
                value = None if path is None else source_files.further(self._root, name, source, path)
            if value is not None:
                extra[name] = value
        return extra


def _files(root: Path) -> Iterator[str]:
    """Paths relative to `root`; hidden files and folders are ignored, and links to folders not followed."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _unknown(files: Sequence[str], columns: Sources) -> str:
    """The files that are neither images nor belong to one, counted by ending: `2 .gif, 1 .docx`."""
    known = {
        extension for source in columns.values() if source.member for extension in extensions(source.member)
    }
    endings = Counter(
        os.path.splitext(file)[1].lower() or "without an ending"
        for file in files
        if not file.lower().endswith((*SUFFIXES, *_BESIDE, *(f".{one}" for one in known)))
    )
    ordered = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {ending}" for ending, count in ordered)


def _is_member(file: str, columns: Sources) -> bool:
    """Whether an image file is a further column of another, not a sample itself."""
    name = file.rpartition("/")[2].lower()
    return any(
        source.member is not None and name.endswith(tuple(f".{e}" for e in extensions(source.member)))
        for source in columns.values()
    )


def _member(image: Path, source: ColumnSource) -> Path | None:
    """The file of a further column next to an image: STEM.MEMBER, with the stem of the image's name, or the
    part before its first dot."""
    if source.member is None:
        return None
    stems = dict.fromkeys((image.stem, image.name.partition(".")[0]))
    names = [f"{stem}.{extension}" for stem in stems for extension in extensions(source.member)]
    return next((path for name in names if (path := image.with_name(name)).is_file()), None)


def _usable(root: Path, found: Sequence[str]) -> tuple[list[str], list[Fault]]:
    """Files that can be read, and faults for names that are not text, links out of the folder, pipes."""
    good, faults = [], []
    for file in found:
        try:
            if not file.isprintable():
                raise ImageFault("its name has characters that are not text; rename it")
            source_files.check_regular(root, root / file)
            good.append(file)
        except ImageFault as fault:
            faults.append(Fault(str(root), ascii(file)[1:-1], str(fault)))
    return good, faults


def _subfolders(root: Path, found: Sequence[str]) -> list[str]:
    """The first-level subfolder of each file; empty if the images are in the folder itself."""
    outside = next((file for file in found if "/" not in file), None)
    inner = next((file for file in found if "/" in file), None)
    if outside is not None and inner is not None:
        raise DataError(
            f"{root}: {outside} is outside the class subfolders ({inner}): move it into one, "
            "or set labels to none"
        )
    return [file.split("/", 1)[0] for file in found] if inner else []


def _json_label(root: Path, file: str, name: str) -> source_files.Label:
    try:
        value = (source_files.sidecar_meta(root, (root / file).with_suffix(".json")) or {}).get(name)
    except ImageFault as fault:
        raise DataError(f"{root}: {file}: {fault}") from fault
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise DataError(f"{root}: {file}: its json has {name}={str(value)[:20]!r}; wanted a class")
    return value


COMPONENT = FolderSource
