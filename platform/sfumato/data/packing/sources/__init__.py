"""Where images can be packed from, one file per kind of source."""

from __future__ import annotations

from pathlib import Path

from sfumato.data.packing.download import listed
from sfumato.data.packing.sources.digits import DigitsSource
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.data.packing.sources.huggingface import SPLITS, STATE, HuggingFaceSource
from sfumato.data.packing.sources.idx import IMAGES, IdxSource, holds_idx
from sfumato.data.packing.sources.listing import ListingSource
from sfumato.data.packing.sources.npz import NpzSource
from sfumato.data.packing.sources.parquet import ParquetSource
from sfumato.data.packing.sources.webdataset import WebDatasetSource
from sfumato.data.storage.filesystems import filesystem, is_remote

SourceSettings = (
    DigitsSource
    | FolderSource
    | NpzSource
    | IdxSource
    | ParquetSource
    | HuggingFaceSource
    | WebDatasetSource
    | ListingSource
)
KINDS: dict[str, type[SourceSettings]] = {
    "digits": DigitsSource,
    "folder": FolderSource,
    "npz": NpzSource,
    "idx": IdxSource,
    "parquet": ParquetSource,
    "huggingface": HuggingFaceSource,
    "webdataset": WebDatasetSource,
    "listing": ListingSource,
}


def kind_of(text: str) -> str:
    """The kind of source that a command-line word means: `digits`, or the kind found at a path."""
    if text == "digits":
        return "digits"
    if is_remote(text):
        return _kind_of_remote(text)
    path = Path(text).expanduser()
    return _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)


def _kind_of_file(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    by_suffix = {".npz": "npz", ".parquet": "parquet", ".tar": "webdataset"}
    by_suffix |= dict.fromkeys((".csv", ".tsv", ".jsonl"), "listing")
    if name.endswith("-ubyte"):
        return "idx"
    return next((kind for suffix, kind in by_suffix.items() if name.endswith(suffix)), "folder")


def _kind_of_folder(path: Path) -> str:
    if (path / STATE).is_file() or (path / SPLITS).is_file():
        return "huggingface"
    if holds_idx(path):
        return "idx"
    if next(path.glob("*.tar"), None) is not None:
        return "webdataset"
    if next(path.rglob("*.parquet"), None) is not None:
        return "parquet"
    return "folder"


def _kind_of_remote(uri: str) -> str:
    """By names alone; the content may be large, and is fetched when it is packed."""
    names = [path for path, _ in listed(uri)]
    top = {name for name in names if "/" not in name}
    if not names or names == [""]:
        return _kind_of_file(Path(filesystem(uri)[1]))
    if top & {STATE, SPLITS}:
        return "huggingface"
    if top & {name + suffix for name in IMAGES.values() for suffix in ("", ".gz")}:
        return "idx"
    if any(name.endswith(".tar") for name in top):
        return "webdataset"
    return "parquet" if any(name.endswith(".parquet") for name in names) else "folder"


def source_named(text: str) -> SourceSettings:
    """The source that a command-line word means, with its default options."""
    kind = kind_of(text)
    return DigitsSource() if kind == "digits" else KINDS[kind].model_validate({"path": text})
