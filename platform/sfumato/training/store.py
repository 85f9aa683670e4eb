"""Where checkpoints are stored: a folder on a disk that all ranks see, or a prefix in object storage."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from pathlib import Path
from typing import BinaryIO, Protocol, Self, cast

import pyarrow as pa
import pyarrow.fs as pafs

from sfumato.data.storage.filesystems import hasty, names_below, patient
from sfumato.errors import CheckpointError, ConfigError


class CheckpointStore(Protocol):
    """The few operations that the checkpoint protocol needs, on names relative to the store's root."""

    def folders(self) -> list[str]:
        """Names of the folders at the root, sorted."""
        ...

    def exists(self, path: str) -> bool: ...
    def read(self, path: str) -> bytes: ...
    def write(self, path: str, data: bytes) -> None:
        """Write the whole file or nothing."""
        ...

    def remove(self, folder: str) -> None: ...
    def describe(self, path: str) -> str:
        """The name of a path in error messages."""
        ...

    def staging(self, folder: str, scratch: Path) -> Path:
        """A local folder to write into, created if missing."""
        ...

    def publish(self, folder: str, staged: Path, *, rank: int) -> dict[str, tuple[int, str]]:
        """Move this rank's staged files to the store; returns (bytes, sha256) by file name."""
        ...

    def materialise(self, folder: str, files: dict[str, tuple[int, str]], scratch: Path) -> Path:
        """A local folder with these files, checked. Raises CheckpointError naming a missing or damaged one.

        Each file is read from the store once: `open` uses the copy in `scratch` if there is one.
        """
        ...

    def open(self, folder: str, name: str, scratch: Path) -> BinaryIO:
        """A file with random access; object storage transfers only the bytes that are read.

        Raises FileNotFoundError.
        """
        ...

    def drop_copies(self, folder: str, scratch: Path) -> None:
        """Remove the files that `materialise` copied to `scratch`."""
        ...


def open_store(uri: str) -> CheckpointStore:
    """A store by path or URI. Raises ConfigError for a scheme without a filesystem."""
    if "://" not in uri:
        return LocalStore(Path(uri))
    try:
        filesystem, root = pafs.FileSystem.from_uri(hasty(uri))
    except (OSError, ValueError) as error:
        raise ConfigError(f"train.checkpoint.uri={uri!r} cannot be opened: {error}") from error
    if isinstance(filesystem, pafs.LocalFileSystem):
        return LocalStore(Path(root))
    return ObjectStore(filesystem, root)


class LocalStore:
    """A folder. Ranks write straight into it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folders(self) -> list[str]:
        return sorted(p.name for p in self._root.iterdir() if p.is_dir()) if self._root.is_dir() else []

    def exists(self, path: str) -> bool:
        return (self._root / path).is_file()

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        target = self._root / path
        partial = target.with_name(target.name + ".partial")
        with partial.open("wb") as file:
            file.write(data)
        partial.rename(target)

    def remove(self, folder: str) -> None:
        # The manifest first: an interrupted removal leaves debris, not a damaged checkpoint.
        for manifest in (self._root / folder).glob("manifest.json"):
            manifest.unlink()
        shutil.rmtree(self._root / folder, ignore_errors=True)

    def describe(self, path: str) -> str:
        return str(self._root / path)

    def staging(self, folder: str, scratch: Path) -> Path:
        target = self._root / folder
        target.mkdir(parents=True, exist_ok=True)
        return target

    def publish(self, folder: str, staged: Path, *, rank: int) -> dict[str, tuple[int, str]]:
        return {path.name: (path.stat().st_size, sha256(path)) for path in own_files(staged, rank)}

    def materialise(self, folder: str, files: dict[str, tuple[int, str]], scratch: Path) -> Path:
        for name, (size, digest) in files.items():
            check_file(self._root / folder / name, size, digest)
        return self._root / folder

    def open(self, folder: str, name: str, scratch: Path) -> BinaryIO:
        return (self._root / folder / name).open("rb")

    def drop_copies(self, folder: str, scratch: Path) -> None:
        """There are none: files are read in place."""


class ObjectStore:
    """A prefix in object storage (S3, GCS, ...): ranks write to local scratch and upload their files.

    Every request retries through an outage (`data.storage.filesystems`).
    """

    def __init__(self, filesystem: pafs.FileSystem, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")

    @patient
    def folders(self) -> list[str]:
        return sorted(name for name, is_folder in names_below(self._fs, self._root).items() if is_folder)

    @patient
    def exists(self, path: str) -> bool:
        return bool(self._fs.get_file_info(f"{self._root}/{path}").type == pafs.FileType.File)

    @patient
    def read(self, path: str) -> bytes:
        with self._fs.open_input_stream(f"{self._root}/{path}") as stream:
            return bytes(stream.read())

    @patient
    def write(self, path: str, data: bytes) -> None:
        with self._fs.open_output_stream(f"{self._root}/{path}") as stream:
            stream.write(data)

    @patient
    def remove(self, folder: str) -> None:
        if self.exists(f"{folder}/manifest.json"):
            self._fs.delete_file(f"{self._root}/{folder}/manifest.json")
        if self._fs.get_file_info(f"{self._root}/{folder}").type == pafs.FileType.Directory:
            # Contents are deleted first; Google's client then misses a folder marker that was never created.
            with contextlib.suppress(FileNotFoundError):
                self._fs.delete_dir(f"{self._root}/{folder}")

    def describe(self, path: str) -> str:
        return f"{self._fs.type_name}://{self._root}/{path}"

    def staging(self, folder: str, scratch: Path) -> Path:
        target = scratch / folder
        target.mkdir(parents=True, exist_ok=True)
        return target

    def publish(self, folder: str, staged: Path, *, rank: int) -> dict[str, tuple[int, str]]:
        entries = {}
        for path in own_files(staged, rank):
            entries[path.name] = (path.stat().st_size, sha256(path))
            self._upload(folder, path)
            path.unlink()
        return entries

    @patient
    def _upload(self, folder: str, path: Path) -> None:
        with (
            path.open("rb") as source,
            self._fs.open_output_stream(f"{self._root}/{folder}/{path.name}") as target,
        ):
            shutil.copyfileobj(source, target, 8 << 20)

    def materialise(self, folder: str, files: dict[str, tuple[int, str]], scratch: Path) -> Path:
        target = self.staging(folder, scratch)
        for name, (size, digest) in files.items():
            self._download(folder, name, target / name)
            try:
                check_file(target / name, size, digest)
            except CheckpointError:
                (target / name).unlink()
                raise
        return target

    @patient
    def _download(self, folder: str, name: str, target: Path) -> None:
        try:
            with (
                self._fs.open_input_stream(f"{self._root}/{folder}/{name}") as source,
                target.open("wb") as local,
            ):
                shutil.copyfileobj(source, local, 8 << 20)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.describe(f'{folder}/{name}')} is missing") from error

    def open(self, folder: str, name: str, scratch: Path) -> BinaryIO:
        copy = scratch / folder / name
        if copy.is_file():
            return copy.open("rb")
        return cast(BinaryIO, _Ranges(self._fs, f"{self._root}/{folder}/{name}"))

    def drop_copies(self, folder: str, scratch: Path) -> None:
        shutil.rmtree(scratch / folder, ignore_errors=True)


class _Ranges:
    """A file in object storage: every read requests its range, and retries through an outage."""

    def __init__(self, fs: pafs.FileSystem, path: str) -> None:
        self._fs, self._path, self._at = fs, path, 0
        self._file = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def seek(self, to: int) -> int:
        self._at = to
        return to

    def read(self, size: int = -1) -> bytes:
        content = self._range(size)
        self._at += len(content)
        return content

    @patient
    def _range(self, size: int) -> bytes:
        if self._file.closed:
            self._file = self._opened()
        try:
            length = self._file.size() - self._at if size < 0 else size
            return cast(bytes, self._file.read_at(length, self._at))
        except OSError:
            self._file.close()  # its connection may be lost for good
            raise

    @patient
    def _opened(self) -> pa.NativeFile:
        return self._fs.open_input_file(self._path)


def writer_of(name: str) -> int:
    """The rank that wrote a file of a checkpoint."""
    found = re.match(r"__(\d+)_", name)
    return int(found[1]) if found else 0


def own_files(folder: Path, rank: int) -> list[Path]:
    """The files that a rank wrote: its own shards, and for rank 0 the common index."""
    shards = sorted(folder.glob(f"__{rank}_*.distcp"))
    return [*shards, folder / ".metadata"] if rank == 0 else shards


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, size: int, digest: str) -> None:
    """Raises CheckpointError if a file is missing or differs in size or content."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size != size:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes; its manifest records {size:,}")
    if sha256(path) != digest:
        raise CheckpointError(f"{path} is damaged: its sha256 differs from the manifest's")
