"""Events that wait on disk until the tracking server has them.

A segment is a folder: `events.jsonl` (one event per line, append-only), `files/` (images and artifacts),
and `sent`, the offset up to which the events have arrived. One process writes a segment; the holder of
its role's lock (see sender.py), perhaps a later process, reads it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Segment:
    """One writer's queue on disk. Appending costs a write to the page cache and never raises."""

    def __init__(self, folder: Path, *, limit_bytes: int = 256 * 2**20) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.dropped = 0
        self._events = folder / "events.jsonl"
        self._sent = folder / "sent"
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._names = 0

    @classmethod
    def create(cls, role: Path, *, limit_bytes: int) -> Segment:
        """A new segment of a role, after the existing ones."""
        role.mkdir(parents=True, exist_ok=True)
        number = max((int(path.name) for path in role.iterdir() if path.name.isdigit()), default=0)
        while True:
            number += 1
            folder = role / f"{number:06d}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            (folder / "files").mkdir()
            return cls(folder, limit_bytes=limit_bytes)

    @staticmethod
    def all(role: Path) -> list[Segment]:
        """The segments of a role, oldest first."""
        folders = role.iterdir() if role.is_dir() else []
        return [Segment(path) for path in sorted(folders) if path.name.isdigit()]

    def append(self, event: Mapping[str, Any]) -> bool:
        """Queue an event; False if there is no room for it."""
        line = f"{json.dumps(event, ensure_ascii=False)}\n".encode()
        with self._lock:
            try:
                if self._size() - self.sent() + len(line) > self._limit:
                    raise OSError("the spool is full")
                with self._events.open("ab") as file:
                    file.write(line)
            except OSError:
                self.dropped += 1
                return False
        return True

    def keep(self, data: bytes, suffix: str) -> str | None:
        """Keep the file that an event refers to; its name in `files`, or None if there is no room."""
        return self._keep(lambda target: target.write_bytes(data), len(data), suffix)

    def keep_in_folder(self, source: Path) -> str | None:
        """Keep a copy of a file, or of a folder's contents, in a separate folder."""

        def copy(target: Path) -> None:
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                target.mkdir()
                shutil.copy2(source, target)

        return self._keep(copy, _bytes(source), "")

    def _keep(self, write: Callable[[Path], object], size: int, suffix: str) -> str | None:
        with self._lock:
            self._names += 1
            name = f"{self._names:06d}{suffix}"
        try:
            if _bytes(self.files) + size > self._limit:
                raise OSError("the spool is full")
            write(self.files / name)
        except OSError:
            self.dropped += 1
            self.forget(name)
            return None
        return name

    def forget(self, name: str) -> None:
        """Remove a kept file, which has arrived."""
        path = self.files / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def unsent(self) -> Iterator[tuple[Event, int]]:
        """The events that have not arrived, each with the offset of its end.

        A last line without its end was cut off by a crash, or is just being written.
        """
        if not self._events.exists():
            return
        with self._events.open("rb") as file:
            end = self.sent()
            file.seek(end)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                try:
                    yield json.loads(line), end
                except ValueError:
                    # A line that a crash cut short, joined to the next one.
                    continue

    def sent(self) -> int:
        """The offset up to which the events have arrived."""
        try:
            return int(self._sent.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def mark_sent(self, offset: int) -> None:
        """Record that everything up to the offset has arrived."""
        draft = self._sent.with_suffix(".draft")
        draft.write_text(str(offset))
        os.replace(draft, self._sent)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _size(self) -> int:
        return self._events.stat().st_size if self._events.exists() else 0


def _bytes(source: Path) -> int:
    if source.is_dir():
        return sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    return source.stat().st_size
