"""The record of a start: complete, in order, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from sfumato.runtime.runs import moments
from sfumato.runtime.runs.run_folder import RunFolder


def test_moments_before_the_run_has_a_folder_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments, "_early", [])  # of other tests' commands
    folder = RunFolder(tmp_path)
    moments.mark("first")
    moments.mark("second", folder)
    moments.mark("third", folder)
    lines = [json.loads(line) for line in (folder.logs / moments.FILE).read_text().splitlines()]
    assert [line["moment"] for line in lines] == ["first", "second", "third"]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    assert all(line["process"] == os.getpid() and line["cpu"] > 0 for line in lines)


def test_a_deleted_run_stays_deleted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    shutil.rmtree(folder.path)
    moments.mark("first", folder)
    assert not folder.path.exists()
