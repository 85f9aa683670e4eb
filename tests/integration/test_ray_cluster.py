"""The cluster that a command runs on: never too small without a word, never open to the network."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil
import pytest

from sfumato.errors import CapabilityError
from sfumato.parallel import ParallelSettings
from sfumato.runtime.cluster import ray_cluster

# One process that opens a cluster, waits in it for a signal, and then works on it. Ray's first start fails.
PRIVATE = """
import json, logging, os, subprocess, sys, time
from pathlib import Path
import psutil, ray
from sfumato.runtime.cluster import ray_cluster

init, idle = ray.init, []

def late(**options):
    ray.init = init
    command = [sys.executable, "-c", "import time; time.sleep(600)", options["_temp_dir"]]
    idle.append(subprocess.Popen(command))
    raise Exception("\\nThe current node timed out during startup.")  # as of Ray's dashboard

def sockets(process):
    try:
        return process.net_connections("inet")
    except psutil.NoSuchProcess:  # Ray's workers come and go
        return []

def commands(process):
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []

ray.init = late
logging.basicConfig(format="%(message)s", stream=sys.stderr)
with ray_cluster.cluster(3, Path(sys.argv[1])):
    ran = ray.get(ray.remote(num_cpus=3)(lambda: os.nice(0)).remote())
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        c.laddr.ip for p in processes for c in sockets(p) if c.status == psutil.CONN_LISTEN
    }
    started = " ".join(part for p in processes[1:] for part in commands(p))
    mode = os.environ["RAY_AUTH_MODE"]
    cpus = ray.cluster_resources()["CPU"]
    of_the_late_start = psutil.pid_exists(idle[0].pid)
    try:
        print("there", file=sys.stderr, flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        worked = ray.get(ray.remote(lambda: "worked").remote(), timeout=300)
print(json.dumps({"listening": sorted(listening), "mode": mode, "nice": ran - os.nice(0), "cpus": cpus,
                  "needless": [name for name in ("monitor.py", "dashboard.py") if name in started],
                  "of_the_late_start": of_the_late_start, "after_sigterm": worked}))
"""


@dataclass
class Done:
    """What the process found out, all that it said, what was said after the signal, and what it left."""

    status: int
    found: dict[str, Any]
    before: list[str]
    after: list[str]
    logs: Path
    left: list[psutil.Process]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One cluster under a TMPDIR, as on macOS, in which the paths of Ray's sockets would be too long.

    It is opened in the background of a shell, where ctrl-C is ignored. SIGTERM goes to the process and all
    that it has started, as systemd sends it, and to the process group again, as `timeout` does.
    """
    folder = tmp_path_factory.mktemp("private")
    long = folder / "a-folder-of-a-batch-system"
    long.mkdir()
    command = [sys.executable, "-c", PRIVATE, str(folder / "logs")]
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command],
        env={**os.environ, "TMPDIR": str(long)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    before = list(takewhile(lambda line: line != "there\n", process.stderr))
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    for child in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    out, after = process.communicate(timeout=600)
    assert out, (before, after)
    _, left = psutil.wait_procs(below, timeout=120)
    return Done(process.returncode, json.loads(out), before, after.splitlines(), folder / "logs", left)


def test_a_private_cluster_listens_on_loopback_alone_with_a_token(private: Done) -> None:
    found = private.found
    assert {ip.removeprefix("::ffff:") for ip in found["listening"]} == {"127.0.0.1"}
    assert found["mode"] == "token"
    assert found["nice"] == 0, "workers run at the priority of the command"
    assert found["needless"] == [], "no process that one machine has no use for"
    assert found["cpus"] >= 3, "as many logical CPUs as were asked for, whatever the machine has"
    assert (private.logs / "ray").is_dir(), "Ray's logs are kept"


def test_sigterm_is_an_interrupt_and_not_a_trace_of_rays(private: Done) -> None:
    """Heard at once, then done. Ray's daemons and agents leave it to the command."""
    assert private.after == ["SIGTERM received: stopping as at ctrl-C", "interrupted"]
    assert private.status == 0
    assert private.found["after_sigterm"] == "worked"
    assert not [process for process in private.left if process.status() != psutil.STATUS_ZOMBIE]


def test_a_start_that_was_late_is_repeated_and_leaves_nothing(private: Done) -> None:
    (said,) = private.before
    assert "timed out during startup" in said and "trying again" in said
    assert not private.found["of_the_late_start"]


def test_a_cluster_that_is_too_small_is_refused(ray_local: None, tmp_path: Path) -> None:
    with ray_cluster.cluster(4, tmp_path):
        pass
    too_many = pytest.raises(CapabilityError, match=r"has 4 CPUs and 99 are needed \(parallel\.workers")
    with too_many, ray_cluster.cluster(99, tmp_path):
        pass
    no_gpu = pytest.raises(CapabilityError, match="0 GPUs and 2 are needed")
    with no_gpu, ray_cluster.cluster(1, tmp_path, gpus=2):
        pass


def test_an_address_where_nobody_answers_is_one_line(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from sfumato.runtime.cluster import ray_cluster\n"
        "from sfumato.errors import CapabilityError\n"
        "try:\n  with ray_cluster.cluster(1, Path(sys.argv[1])): pass\n"
        "except CapabilityError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
    )
    assert "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_more_workers_than_cores_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (said,) = ray_cluster.warnings(ParallelSettings(workers=ray_cluster.cores() + 1))
    assert "take turns" in said
    assert ray_cluster.warnings(ParallelSettings(workers=1)) == []
    assert ray_cluster.threads_per_worker(ParallelSettings(workers=2), 8) == 4
    assert ray_cluster.threads_per_worker(ParallelSettings(workers=9), 8) == 1


def test_remarks_of_ray_stay_out_of_a_jobs_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a cluster that was joined, as on a private one. Ray's thread looks up `sys.stdout` each time."""
    import ray
    from ray._private.worker import print_to_stdstream

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray_cluster, "_connected", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    remark = "Task Worker.ready failed. There are 3 retries remaining, so the task will be retried."
    with ray_cluster.cluster(1, tmp_path):
        print_to_stdstream({"lines": [remark], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert capsys.readouterr() == ("", "")
    assert remark in (tmp_path / "ray-messages.txt").read_text()
