"""What each rank reads of a checkpoint on resume, and that all ranks take the same one."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.fs as pafs
import pytest
import torch

from sfumato.errors import CheckpointError
from sfumato.training import checkpoint as checkpoints
from sfumato.training.ranks import Ranks
from sfumato.training.resume import newest_whole
from sfumato.training.store import LocalStore, ObjectStore, sha256

FILES = (".metadata", *(f"__{rank}_0.distcp" for rank in range(4)))
SIZES = {name: 500 + 1000 * number for number, name in enumerate(FILES)}


@dataclass
class Meeting:
    """Where ranks that are threads of this process hand each other their values."""

    world_size: int
    values: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.values = [None] * self.world_size
        self.barrier = threading.Barrier(self.world_size, timeout=600)


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def gather(self, value: Any) -> list[Any]:
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait()
        found = list(self.meeting.values)
        self.meeting.barrier.wait()
        return found


class CountingFile(io.RawIOBase):
    """A file that counts the bytes that are read of it."""

    def __init__(self, inner: BinaryIO, add: Callable[[int], None]) -> None:
        self._inner, self._add = inner, add

    def read(self, size: int = -1) -> bytes:
        content = self._inner.read(size)
        self._add(len(content))
        return content

    def seek(self, to: int, whence: int = 0) -> int:
        assert whence == 0
        return self._inner.seek(to)

    def close(self) -> None:
        self._inner.__exit__(None, None, None)
        super().close()


class CountingLocal(LocalStore):
    """Counts what is read by name of the file: to check it, and to take tensors from it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read_bytes: dict[str, int] = {}

    def add(self, name: str, size: int) -> None:
        self.read_bytes[name] = self.read_bytes.get(name, 0) + size

    def materialise(self, folder: str, files: dict[str, tuple[int, str]], scratch: Path) -> Path:
        for name in files:
            self.add(name, (self._root / folder / name).stat().st_size)
        return super().materialise(folder, files, scratch)

    def open(self, folder: str, name: str, scratch: Path) -> BinaryIO:
        return CountingFile(super().open(folder, name, scratch), lambda size: self.add(name, size))  # type: ignore[return-value]


class CountingRemote(ObjectStore):
    """Counts what is transferred, as a filesystem that stands between the store and the disk sees it."""

    def __init__(self, root: Path) -> None:
        self.read_bytes: dict[str, int] = {}
        super().__init__(_CountingFs(root, self.read_bytes), "store")  # type: ignore[arg-type]


class _CountingFs:
    type_name = "test"

    def __init__(self, root: Path, counts: dict[str, int]) -> None:
        self._inner = pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
        self._counts = counts

    def open_output_stream(self, path: str) -> Any:
        self._inner.create_dir(path.rsplit("/", 1)[0])
        return self._inner.open_output_stream(path)

    def open_input_stream(self, path: str) -> Any:
        name = path.rsplit("/", 1)[1]
        self._counts[name] = self._counts.get(name, 0) + self._inner.get_file_info(path).size
        return self._inner.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return _CountingRange(self._inner.open_input_file(path), path.rsplit("/", 1)[1], self._counts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _CountingRange:
    def __init__(self, inner: Any, name: str, counts: dict[str, int]) -> None:
        self._inner, self._name, self._counts = inner, name, counts

    def read_at(self, size: int, offset: int) -> bytes:
        self._counts[self._name] = self._counts.get(self._name, 0) + size
        return self._inner.read_at(size, offset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def checkpoint(root: Path, images: int) -> Path:
    """A whole checkpoint of four ranks by its files, sizes and checksums; what is in them does not matter."""
    folder = root / f"images-{images:012d}-abc"
    folder.mkdir(parents=True)
    for number, (name, size) in enumerate(SIZES.items()):
        (folder / name).write_bytes(bytes((number + images) % 251 for _ in range(size)))
    about = {
        "images": images,
        "step": 1,
        "recipe_digest": "r",
        "world_size": 4,
        "strategy": "fsdp",
        "files": {name: {"bytes": SIZES[name], "sha256": sha256(folder / name)} for name in FILES},
    }
    (folder / checkpoints.MANIFEST).write_text(json.dumps(about))
    return folder


def newest_on_ranks(
    stores: Sequence[CountingLocal | CountingRemote], scratch: Path
) -> list[checkpoints.Checkpoint | BaseException | None]:
    """What each rank, a thread with a store of its own, finds."""
    meeting, size = Meeting(len(stores)), len(stores)
    found: list[checkpoints.Checkpoint | BaseException | None] = [None] * size

    def run(rank: int) -> None:
        ranks = ThreadRanks(rank, size, None, meeting)
        try:
            found[rank] = newest_whole(stores[rank], scratch / str(rank), ranks)
        except (OSError, CheckpointError) as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    return found


@pytest.fixture(params=[CountingLocal, CountingRemote])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], list[Any]]:
    (tmp_path / "store").mkdir()
    root = tmp_path / "store" if request.param is CountingLocal else tmp_path
    return lambda count: [request.param(root) for _ in range(count)]


def name_of(found: object) -> str:
    assert isinstance(found, checkpoints.Checkpoint), found
    return found.name


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_file_is_checked_once_by_one_rank(
    size: int, stores: Callable[[int], list[Any]], tmp_path: Path
) -> None:
    checkpoint(tmp_path / "store", 100)
    newest = checkpoint(tmp_path / "store", 200)
    opened = stores(size)
    assert {name_of(found) for found in newest_on_ranks(opened, tmp_path / "scratch")} == {newest.name}
    together: dict[str, int] = {}
    for store in opened:
        for name, read in store.read_bytes.items():
            together[name] = together.get(name, 0) + read
    together.pop(checkpoints.MANIFEST, None)
    assert together == SIZES, "all of them, and none twice"
    if size == 4:
        assert set(opened[0].read_bytes) - {checkpoints.MANIFEST} == {".metadata", "__0_0.distcp"}
        assert set(opened[3].read_bytes) == {"__3_0.distcp"}
    else:
        assert set(opened[-1].read_bytes) >= {"__1_0.distcp", "__3_0.distcp"}


@pytest.mark.parametrize("damaged", FILES)
def test_what_any_rank_finds_damaged_is_passed_over_by_all(
    damaged: str, stores: Callable[[int], list[Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = checkpoint(tmp_path / "store", 100)
    file = checkpoint(tmp_path / "store", 200) / damaged
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    found = newest_on_ranks(stores(3), tmp_path / "scratch")
    assert [name_of(one) for one in found] == [older.name] * 3
    assert damaged in caplog.text and caplog.text.count("trying the checkpoint before it") == 1


class Denied(CountingLocal):
    """A disk that one rank may not read from."""

    def materialise(self, folder: str, files: dict[str, tuple[int, str]], scratch: Path) -> Path:
        raise PermissionError(13, "Permission denied", folder)


def test_what_cannot_be_read_is_no_damage(tmp_path: Path) -> None:
    for images in (100, 200):
        checkpoint(tmp_path / "store", images)
    stores = [CountingLocal(tmp_path / "store"), Denied(tmp_path / "store")]
    found = newest_on_ranks(stores, tmp_path)
    assert all(isinstance(one, OSError) and "Permission denied" in str(one) for one in found), found


def test_rows_are_read_without_the_rest(stores: Callable[[int], list[Any]], tmp_path: Path) -> None:
    (store, writing) = stores(2)
    large = torch.randn(2000, 300)
    state = {
        "nets/a/large": large,
        "nets/a/half": large.bfloat16(),
        "nets/a/turned": torch.randn(300, 2000).t(),
        "nets/a/small": torch.arange(40).reshape(8, 5),
        "optim/a/large/step": torch.tensor(3.0),
    }
    saver = checkpoints.Writer(
        writing, keep=2, recipe_digest="r", strategy="single", scratch=tmp_path / "scratch"
    )
    saver.save(state, images=100, step=1)
    saver.close()
    assert saver.failures == []
    (saved,) = checkpoints.complete(store)
    stored = checkpoints.tensors(store, saved, tmp_path / "read")
    store.read_bytes.clear()
    for name in ("nets/a/large", "nets/a/half"):
        assert torch.equal(stored.rows(name, 500, 1000), state[name][500:1000])
    part = (large.nbytes + large.nbytes // 2) / 4
    assert part < sum(store.read_bytes.values()) < part + 20_000
    for name, tensor in state.items():
        assert torch.equal(stored[name], tensor) and stored[name].dtype == tensor.dtype
        if tensor.dim():
            for start, stop in ((0, 3), (5, 9999), (1990, 2100), (7, 7)):
                assert torch.equal(stored.rows(name, start, stop), tensor[start:stop]), name


def test_what_was_checked_is_not_transferred_again(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = CountingRemote(tmp_path)
    saver = checkpoints.Writer(store, keep=2, recipe_digest="r", strategy="single", scratch=tmp_path / "w")
    saver.save({"nets/a/weight": torch.randn(400, 400)}, images=100, step=1)
    saver.close()
    store.read_bytes.clear()
    saved = newest_whole(store, tmp_path / "read")
    assert saved is not None
    dict(checkpoints.tensors(store, saved, tmp_path / "read"))
    store.read_bytes.pop(checkpoints.MANIFEST, None)
    assert store.read_bytes == {name: entry.bytes for name, entry in saved.manifest.files.items()}
    store.drop_copies(saved.name, tmp_path / "read")
    assert not (tmp_path / "read" / saved.name).exists()
