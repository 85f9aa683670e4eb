"""The names of the files in a folder, local or remote, by which sources recognise it; reads no file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class FolderNames(ABC):
    """Answers questions about the names in a folder; names are compared case by case."""

    @abstractmethod
    def has(self, *names: str) -> bool:
        """Whether the folder itself holds a file of one of these names."""

    @abstractmethod
    def top(self, ending: str) -> bool:
        """Whether a name in the folder itself ends like this."""

    @abstractmethod
    def anywhere(self, ending: str) -> bool:
        """Whether a name at any depth ends like this."""


@dataclass(frozen=True, slots=True)
class LocalNames(FolderNames):
    """Looks up names as they are asked for: a folder may hold millions."""

    folder: Path

    def has(self, *names: str) -> bool:
        return any((self.folder / name).is_file() for name in names)

    def top(self, ending: str) -> bool:
        return next(self.folder.glob(f"*{ending}"), None) is not None

    def anywhere(self, ending: str) -> bool:
        return next(self.folder.rglob(f"*{ending}"), None) is not None


@dataclass(frozen=True, slots=True)
class RemoteNames(FolderNames):
    """The names below a URI, as its store lists them."""

    names: Sequence[str]

    def has(self, *names: str) -> bool:
        return not set(names).isdisjoint(self.names)

    def top(self, ending: str) -> bool:
        return any(name.endswith(ending) for name in self.names if "/" not in name)

    def anywhere(self, ending: str) -> bool:
        return any(name.endswith(ending) for name in self.names)
