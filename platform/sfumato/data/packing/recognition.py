"""The source that a command-line word means: every kind says itself what it recognises (`SourceConfig`)."""

from __future__ import annotations

from pathlib import Path

from sfumato.data.packing.download import listed
from sfumato.data.packing.folder_names import FolderNames, LocalNames, RemoteNames
from sfumato.data.packing.source import SourceConfig
from sfumato.data.packing.sources import SOURCES
from sfumato.data.storage.filesystems import filesystem, is_remote


def kind_of(text: str) -> str:
    """The kind of source that a command-line word means: one of the kinds' own words, a path, or a URI."""
    for name, kind in SOURCES.all().items():
        if text in kind.WORDS:
            return name
    if is_remote(text):
        return _kind_of_remote(text)
    path = Path(text).expanduser()
    return _of_folder(LocalNames(path)) if path.is_dir() else _of_file(path.name)


def source_named(text: str) -> SourceConfig:
    """The source that a command-line word means, with its default options."""
    kind = kind_of(text)
    return SOURCES.make(kind, **place_of(kind, text))


def place_of(kind: str, text: str) -> dict[str, str]:
    """The field that holds what the user named; kinds without files have none. Raises ConfigError."""
    return {"path": text} if "path" in SOURCES.find(kind).model_fields else {}


def _kind_of_remote(uri: str) -> str:
    """By names alone; the content may be large, and is fetched when it is packed."""
    names = [name for name, _ in listed(uri)]
    if names in ([], [""]):  # nothing, which is reported when it is opened, or a file
        return _of_file(Path(filesystem(uri)[1]).name)
    return _of_folder(RemoteNames(names))


def _of_file(name: str) -> str:
    plain = name.lower().removesuffix(".gz")
    return next(kind for kind, source in _by_precedence() if plain.endswith(source.FILES))


def _of_folder(folder: FolderNames) -> str:
    return next(kind for kind, source in _by_precedence() if source.recognises(folder))


def _by_precedence() -> list[tuple[str, type[SourceConfig]]]:
    """The built-in kinds, highest precedence first; the last one, `folder`, takes any place."""
    return sorted(SOURCES.all().items(), key=lambda item: -item[1].PRECEDENCE)
