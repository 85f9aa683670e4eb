"""A folder has one living owner; a dead one, on whatever machine, is followed without a question."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato.errors import ConfigError
from sfumato.runtime.runs import live

HOLD = """
import sys
from pathlib import Path
from sfumato.runtime.runs.live import working
with working(Path(sys.argv[1]), print):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works on the folder until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def test_a_living_process_keeps_its_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(
            ConfigError, match=f"process {holder.pid} on .* is working on {tmp_path.name}.*--take-over"
        ),
        live.working(tmp_path, print),
    ):
        pass
    with live.working(tmp_path, print, take_over=True):
        assert json.loads((tmp_path / live.FILE).read_text())["pid"] != holder.pid
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.wait() == 0
        assert (tmp_path / live.FILE).exists(), "what another owns is not removed"
    assert not list(tmp_path.iterdir())


def test_a_killed_process_is_followed_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert (tmp_path / live.FILE).exists()
    notes: list[str] = []
    with live.working(tmp_path, notes.append):
        pass
    assert not notes and not list(tmp_path.iterdir())


def test_a_number_that_another_process_got_since_is_no_owner(tmp_path: Path) -> None:
    here = live.Owner.here()
    other = {"host": here.host, "pid": 1, "started": here.started + 5, "machine": here.machine}
    (tmp_path / live.FILE).write_text(json.dumps(other))
    with live.working(tmp_path, print):
        pass


@pytest.mark.parametrize("beats", [True, False])
def test_an_owner_on_another_machine_is_judged_by_its_file(tmp_path: Path, beats: bool) -> None:
    path, ended = tmp_path / live.FILE, threading.Event()
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": 1.0, "machine": "m"}))
    owner = live.Owner("elsewhere", 7, 1.0, "m")
    notes: list[str] = []
    beating = threading.Thread(target=live._beat, args=(path, owner, ended, 0.05))
    if beats:
        beating.start()
    try:
        begun = time.monotonic()
        if beats:
            with (
                pytest.raises(ConfigError, match="process 7 on elsewhere is working on"),
                live.working(tmp_path, notes.append, beat_s=0.05, silent_s=2.0),
            ):
                pass
        else:
            with live.working(tmp_path, notes.append, beat_s=0.05, silent_s=2.0):
                assert time.monotonic() - begun > 1.5, "it was listened for"
        assert len(notes) == 1 and "looking whether it still is" in notes[0]
    finally:
        ended.set()
        if beats:
            beating.join()
    if not beats:
        with live.working(tmp_path, notes.append):
            pass
        assert len(notes) == 1, "the folder was left without an owner"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}'])
def test_a_damaged_file_is_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / live.FILE).write_text(content)
    with live.working(tmp_path, print):
        assert json.loads((tmp_path / live.FILE).read_text())["pid"]
