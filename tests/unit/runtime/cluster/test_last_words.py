"""A process that is ended from below is spoken for, once; one that leaves by itself is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
