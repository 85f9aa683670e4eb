"""Files and folders that are written whole have the modes that the umask leaves."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato.core.drafts import beside, folder_beside, result_of, write_whole, writing
from sfumato.evaluation.store import write_bytes
from sfumato.runtime.runs.run_folder import RunFolder


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_modes_are_those_of_the_umask(umask: int, tmp_path: Path) -> None:
    write_bytes(tmp_path / "report.json", b"{}")
    RunFolder(tmp_path).write_text("run.json", "{}")
    folder = folder_beside(tmp_path / "model")
    assert {mode(tmp_path / name) for name in ("report.json", "run.json")} == {0o666 & ~umask}
    assert mode(folder) == 0o777 & ~umask


def test_no_two_are_the_same(tmp_path: Path) -> None:
    places = {beside(tmp_path / "a") for _ in range(100)}
    assert len(places) == 100 and all(place.parent == tmp_path for place in places)
    assert all(place.name.startswith(".a.") for place in places), "hidden, beside what it becomes"


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "a", b"before")

    def fails(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no space"):
        write_bytes(tmp_path / "a", b"after")
    assert (tmp_path / "a").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["report.html", ".hidden", "a.1f2e3d4c", "mine"])
def test_a_draft_is_told_by_the_name_of_what_it_becomes(name: str, tmp_path: Path) -> None:
    assert result_of(str(beside(tmp_path / name))) == str(tmp_path / name)
    assert result_of(str(beside(Path(name)))) == name
    assert result_of(str(beside(tmp_path / name) / "000000.png")) == str(tmp_path / name / "000000.png")
    assert result_of(str(tmp_path / name)) == str(tmp_path / name)


@pytest.fixture
def small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file of this process may have more than 100 bytes; what a full disk says is said by this, too."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(bytes(1_000))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would keep half of a module's for good
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_names_its_file_and_leaves_nothing(small_files: None, tmp_path: Path) -> None:
    path = tmp_path / "report.json"

    def by_hand() -> None:
        with path.open("wb") as file:
            file.write(bytes(1_000))

    for write, named in (
        (by_hand, path),
        (lambda: shutil.copytree(tmp_path / "large", tmp_path / "copy"), tmp_path / "copy" / "file"),
        (lambda: save_file({"w": torch.zeros(1_000)}, path), path),
    ):
        with pytest.raises(OSError, match="File too large") as failed, writing(path):
            write()
        assert (failed.value.errno, failed.value.filename) == (errno.EFBIG, str(named))
        path.unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "copy")
    for whole in (write_whole, write_bytes):
        with pytest.raises(OSError, match="File too large") as failed:
            whole(path, bytes(1_000))
        assert result_of(str(failed.value.filename)) == str(path)
    assert [found.name for found in tmp_path.iterdir()] == ["large"]
    with pytest.raises(ConnectionError), writing(path):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")
