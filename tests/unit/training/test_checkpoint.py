"""Checkpoints count only when they are whole, and are never executed."""

from __future__ import annotations

import io
import os
import pickle
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.training import checkpoint as checkpoints
from sfumato.training import dcp
from sfumato.training.resume import newest_whole
from sfumato.training.store import LocalStore, ObjectStore


def state(value: float) -> dict[str, Tensor]:
    return {
        "nets/a/weight": torch.full((300, 40), value),
        "optim/a/weight/step": torch.tensor(value),
        "nets/a/half": torch.full((3,), value, dtype=torch.bfloat16),
    }


def writer(store: LocalStore | ObjectStore, tmp_path: Path, keep: int = 2) -> checkpoints.Writer:
    return checkpoints.Writer(
        store, keep=keep, recipe_digest="r", strategy="single", scratch=tmp_path / "scratch"
    )


def stored(store: LocalStore | ObjectStore) -> list[int]:
    return [checkpoint.images for checkpoint in checkpoints.complete(store)]


@pytest.fixture(params=["local", "object"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LocalStore | ObjectStore:
    """A folder, and the protocol for object storage on a real filesystem behind pyarrow's interface."""
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    import pyarrow.fs as pafs

    (tmp_path / "store").mkdir()
    root = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    return ObjectStore(_MakesFolders(root), "store")


class _MakesFolders:
    """Object stores have no folders to be made; a disk has."""

    type_name = "test"

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def open_output_stream(self, path: str) -> object:
        self._inner.create_dir(path.rsplit("/", 1)[0])
        return self._inner.open_output_stream(path)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def test_round_trip_keeps_the_newest(store: LocalStore | ObjectStore, tmp_path: Path) -> None:
    saver = writer(store, tmp_path)
    tensors = state(0.0)
    for images in (100, 200, 300):
        tensors["nets/a/weight"].fill_(images)  # in place, as training does, while the last one is written
        saver.save(tensors, images=images, step=images // 100)
    saver.close()
    assert saver.failures == []
    assert stored(store) == [300, 200]
    newest = newest_whole(store, tmp_path / "read")
    assert newest is not None and newest.manifest.step == 3
    read = checkpoints.load(store, newest, tmp_path / "read")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype
    older = checkpoints.load(store, checkpoints.complete(store)[1], tmp_path / "read")
    assert torch.equal(older["nets/a/weight"], torch.full((300, 40), 200.0)), "a copy, not the live tensor"


def test_a_folder_without_manifest_does_not_exist(store: LocalStore | ObjectStore, tmp_path: Path) -> None:
    saver = writer(store, tmp_path)
    saver.save(state(1), images=100, step=1)
    saver.close()
    folder = tmp_path / "store" / "images-000000000200-dead00"
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(b"half")
    assert stored(store) == [100]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    damage: str, store: LocalStore | ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver = writer(store, tmp_path)
    for images in (100, 200):
        saver.save(state(images), images=images, step=1)
    saver.close()
    (file,) = (tmp_path / "store").glob("images-000000000200-*/*.distcp")
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-10])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    newest = newest_whole(store, tmp_path / "read")
    assert newest is not None and newest.images == 100
    assert "__0_0.distcp" in caplog.text and "trying the checkpoint before it" in caplog.text


@contextmanager
def disk_that_ends(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    saver = writer(store, tmp_path)
    saver.save(state(1), images=100, step=1)
    saver.wait()
    with disk_that_ends(8_000):
        saver.save(state(2), images=200, step=2)
        assert saver.wait() is None
    assert stored(store) == [100]
    assert len(saver.failures) == 1 and "checkpoint at 200 images was not written" in saver.failures[0]
    assert [path.name[:19] for path in (tmp_path / "store").iterdir()] == ["images-000000000100"]
    saver.save(state(3), images=300, step=3)
    saver.close()
    assert stored(store) == [300, 100]


def test_a_damaged_checkpoint_takes_no_place_of_a_whole_one(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    saver = writer(store, tmp_path)
    for images in (50, 100):
        saver.save(state(images), images=images, step=1)
    saver.close()
    (file,) = (tmp_path / "store").glob("images-000000000100-*/*.distcp")
    file.write_bytes(b"damaged")
    found = newest_whole(store, tmp_path / "read")
    assert found is not None and found.images == 50
    again = writer(store, tmp_path, keep=1)
    again.goes_on_from(found.images)
    again.save(state(60), images=60, step=1)
    again.wait()
    assert again.reached == 60
    whole = newest_whole(store, tmp_path / "read")
    assert whole is not None and whole.images == 60, "what was written since is not given up for it"
    again.save(state(110), images=110, step=1)
    again.close()
    assert stored(store) == [110], "passed, it goes like any other"


class _NothingGoes(LocalStore):
    """A bucket that one may write to and not delete from."""

    def remove(self, folder: str) -> None:
        raise PermissionError(13, "Access Denied", folder)


class _NoFolder(_NothingGoes):
    def staging(self, folder: str, scratch: Path) -> Path:
        if "000000000200" in folder:
            raise OSError(28, "No space left on device", folder)
        return super().staging(folder, scratch)


@pytest.mark.parametrize("kind", [_NothingGoes, _NoFolder])
def test_training_outlives_what_cannot_be_made_or_removed(
    kind: type[LocalStore], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = kind(tmp_path / "store")
    saver = writer(store, tmp_path, keep=1)
    for images in (100, 200, 300):
        saver.save(state(images), images=images, step=1)
    saver.close()
    made = [300, 200, 100] if kind is _NothingGoes else [300, 100]
    assert stored(store) == made and len(saver.failures) == 3 - len(made)
    assert "cannot remove" in caplog.text


def test_what_counts_is_never_written_over(tmp_path: Path) -> None:
    """Training that went back comes by the same number of images again."""
    store = LocalStore(tmp_path / "store")
    saver = writer(store, tmp_path)
    saver.save(state(1), images=100, step=1)
    saver.wait()
    (first,) = checkpoints.complete(store)
    with disk_that_ends(8_000):
        saver.save(state(2), images=100, step=1)
        assert saver.wait() is None
    saver.save(state(3), images=100, step=1)
    saver.close()
    assert len(checkpoints.complete(store)) == 2
    read = checkpoints.load(store, first, tmp_path / "read")
    assert torch.equal(read["nets/a/weight"], state(1)["nets/a/weight"])


class _Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch executed",))


@pytest.mark.parametrize("payload", [_Attack(), {"nets": _Attack()}, [1, 2, 3]])
def test_an_index_that_is_a_program_is_refused(
    payload: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    pickle.dump(payload, buffer)
    (tmp_path / ".metadata").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        dcp.read(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_an_entry_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    """Other objects would be unpickled without `weights_only`."""
    import torch.distributed.checkpoint as torch_dcp

    torch_dcp.save({"object": {"a": 1}}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(CheckpointError, match="refused"):
        dcp.read(tmp_path)
