"""A test process that is killed leaves nothing running, not even what has a session of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import janitor
from waiting import wait_for

LEAVES = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
import janitor
print(janitor.begin())
idle = [sys.executable, "-c", "import time; time.sleep(600)"]
for own in (True, False):
    subprocess.Popen(["sh", "-c", 'trap "" TERM INT; exec "$@"', "sh", *idle], start_new_session=own)
print("left", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_started_is_ended() -> None:
    assert os.environ.get(janitor.MARK), "these tests have one, too"
    support = Path(janitor.__file__).parent
    command = [sys.executable, "-c", LEAVES, str(support)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        mark = process.stdout.readline().strip()
        assert process.stdout.readline() == "left\n"
        assert len(janitor.marked(mark)) >= 2
        os.kill(process.pid, signal.SIGKILL)
    wait_for("nothing left", lambda: not janitor.marked(mark), seconds=120)
