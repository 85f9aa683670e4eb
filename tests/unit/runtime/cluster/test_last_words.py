"""A process that is ended from below is spoken for, once; one that leaves by itself is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from waiting import wait_for

from sfumato.runtime.cluster.last_words import LOST_GCS, SILENT_END

_BEGIN = "import os, time\nfrom sfumato.runtime.cluster.last_words import *\n"


def ended(body: str) -> tuple[int, str]:
    """The status and the words of a process that runs `body`."""
    run = subprocess.run([sys.executable, "-c", _BEGIN + body], capture_output=True, text=True, check=False)
    assert run.stdout == ""
    return run.returncode, run.stderr


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_a_silent_end_is_spoken_for(end: str) -> None:
    status, said = ended(f"with last_words():\n    {end}\n")
    assert status != 0 and said == f"error: {SILENT_END}\n"


@pytest.mark.parametrize("leave", ["pass", "raise SystemExit(0)"])
def test_nothing_is_said_of_a_process_that_leaves(leave: str) -> None:
    assert ended(f"with last_words():\n    {leave}\n") == (0, "")


def test_a_child_that_was_forked_and_lives_on_holds_nothing_up() -> None:
    body = "with last_words():\n    if (pid := os.fork()) == 0:\n        time.sleep(60)\nos.kill(pid, 9)\n"
    assert ended(body) == (0, "")


def test_what_others_wait_for_in_vain_ends_the_process() -> None:
    block = "words.while_alive(lambda: False, LOST_GCS, lambda: os.write(2, b'finished '))"
    status, said = ended(f"with last_words() as words, {block}:\n    time.sleep(60)\n")
    assert (status, said) == (1, f"error: {LOST_GCS}\nfinished ")
    block = "words.while_alive(lambda: True, LOST_GCS, lambda: None)"
    assert ended(f"with last_words() as words, {block}:\n    pass\n") == (0, "")


def test_what_the_process_would_have_ended_ends_with_it() -> None:
    """The groups that were told last, and only if no leave was taken."""
    begin = (
        "import subprocess, sys\nquiet = dict.fromkeys(['stdout', 'stderr'], subprocess.DEVNULL)\n"
        "pids = [subprocess.Popen(['sleep', '60'], process_group=0, **quiet).pid for _ in range(2)]\n"
        "print(*pids, file=sys.stderr)\n"
        "with last_words() as words:\n    words.end_too(pids)\n    words.end_too(pids[1:])\n"
    )
    status, said = ended(begin + "    os.kill(os.getpid(), 9)\n")
    pids, words = said.splitlines()
    stays, ends = map(int, pids.split())
    assert (status, words) == (-9, f"error: {SILENT_END}")
    wait_for("the end of a group", lambda: not lives(ends))
    assert lives(stays)
    os.kill(stays, signal.SIGKILL)
    status, said = ended(begin)
    left = [int(pid) for pid in said.split()]
    assert status == 0 and all(map(lives, left))
    for pid in left:
        os.kill(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
