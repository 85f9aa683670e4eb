"""Scratch folders: gone with their process, however it ended; those of the living and of others stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.runtime.cluster.scratch import scratch_folder

HOLDS = """
import sys, time
from pathlib import Path
from sfumato.runtime.cluster.scratch import scratch_folder
with scratch_folder("run-", Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


def test_a_folder_lasts_as_long_as_its_block(tmp_path: Path) -> None:
    def fails() -> None:
        with scratch_folder("run-", tmp_path) as folder:
            (folder / "file").write_text("x")
            assert folder.parent == tmp_path and folder.stat().st_mode & 0o77 == 0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert not list(tmp_path.iterdir())


def test_only_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    living, killed = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2))
    try:
        folders = {}
        for process in (living, killed):
            assert process.stdout is not None
            folders[process] = Path(process.stdout.readline().strip())
        killed.kill()
        killed.wait()
        for name in ("run-no-lock", "other-prefix"):
            (tmp_path / name).mkdir()
        for folder in tmp_path.iterdir():
            os.utime(folder, (0, 0))
        with scratch_folder("run-", tmp_path) as mine:
            left = set(tmp_path.iterdir())
        assert left == {mine, folders[living], tmp_path / "run-no-lock", tmp_path / "other-prefix"}
    finally:
        for process in (living, killed):
            process.kill()
            process.wait()
