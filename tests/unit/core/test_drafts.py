"""Files and folders that are written whole have the modes that the umask leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato.core.drafts import beside, folder_beside, result_of
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
