"""Workers that are forked are like those that Ray starts, and as mortal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from sfumato.runtime.cluster import worker_starter
from sfumato.runtime.cluster.forking import ForkServer


def _look() -> dict[str, Any]:
    import sys as of_worker

    import numpy as np
    import ray

    loaded = set(of_worker.modules)
    import torch

    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "threads": torch.get_num_threads(),
        "loaded": {"torch", "diffusers.models.unets.unet_2d", "sfumato.runtime.training.worker"} <= loaded,
        "draw": float(np.random.random()),  # noqa: NPY002 - the state that forks would share
        "identity": ray.NodeID.from_random().hex(),  # as tasks and objects get theirs
        "expendable": Path("/proc/self/oom_score_adj").read_text().strip(),
        "job": ray.get_runtime_context().get_job_id(),
        "said": os.environ.get("SAID"),
        "program": Path(of_worker.path[0]).name,
    }


@pytest.fixture(scope="module")
def workers(ray_local: None) -> list[dict[str, Any]]:
    """Two workers at the same time, one of them with a variable of its own."""
    import ray

    look: Any = ray.remote(type("Looks", (), {"look": lambda self: _look()}))
    # Where pickle would look for it, the workers have no such module.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[attr-defined]
    plain, other = (
        look.options(num_cpus=0).remote(),
        look.options(num_cpus=0, runtime_env={"env_vars": {"SAID": "yes"}}).remote(),
    )
    found: list[dict[str, Any]] = ray.get([plain.look.remote(), other.look.remote()])
    found.append({"job": ray.get_runtime_context().get_job_id()})
    os.kill(found[0]["pid"], signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(plain.look.remote(), timeout=60)
    ray.kill(other)
    return found


def test_workers_come_from_one_process_that_has_imported_everything(workers: list[dict[str, Any]]) -> None:
    one, other, _ = workers
    assert one["parent"] == other["parent"]
    assert psutil.Process(one["parent"]).cmdline()[-1].endswith("fork_server.py")
    assert one["loaded"] and other["loaded"]


def test_a_forked_worker_is_like_one_that_ray_starts(workers: list[dict[str, Any]]) -> None:
    one, other, driver = workers
    assert one["pid"] == one["group"], "Ray ends a worker's children by their group"
    assert one["threads"] == 1, "as many as Ray reserves CPUs"
    assert one["draw"] != other["draw"]
    assert one["identity"] != other["identity"], "tasks of two workers would be taken for one another"
    assert one["expendable"] == "1000", "when memory is out, workers end before Ray's daemons"
    assert one["job"] == driver["job"]
    assert (one["said"], other["said"]) == (None, "yes")


def test_without_a_server_a_worker_starts_as_ray_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(worker_starter.ADDRESS, str(tmp_path / "nobody"))
    assert not worker_starter.forked()
    monkeypatch.delenv(worker_starter.ADDRESS)
    assert not worker_starter.forked()
    starter = [sys.executable, worker_starter.__file__, "--language=PYTHON", "-c", "print('by itself')"]
    done = subprocess.run(starter, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "by itself\n", "Ray's setup_worker.py has run it"


def test_a_server_imports_forks_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module is left to whoever needs it; a program runs in the surroundings of its order."""
    program = tmp_path / "program.py"
    program.write_text("import os, sys\nprint(sys.argv, os.environ['SEEN'], 'colorsys' in sys.modules)\n")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = ForkServer(["colorsys", "nowhere.to.be.found"], {})
    try:
        (variable,) = server.variables().items()
        order = [sys.executable, worker_starter.__file__, "--language=PYTHON", str(program), "--worker"]
        done = subprocess.run(
            order,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=300,
            env={**os.environ, "SEEN": "yes", variable[0]: variable[1]},
        )
        assert done.stdout == f"{[str(program), '--worker']} yes True\n"
        assert Path(variable[1]).is_socket()
    finally:
        server.close()
    assert not Path(variable[1]).parent.exists()


def test_the_server_says_when_it_can_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that imports until it is told to end: before that nobody may be sent to the server."""
    gate = tmp_path / "open"
    (tmp_path / "slow_to_import.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.05)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    server = ForkServer(["slow_to_import"], {})
    try:
        waiting = threading.Thread(target=server.wait)
        waiting.start()
        waiting.join(3)
        assert server.variables(), "its address is known before"
        assert waiting.is_alive()
        gate.touch()
        waiting.join()
    finally:
        server.close()
    server.wait()  # one that has ended is not waited for


@pytest.mark.slow  # mostly waits
def test_a_slow_import_does_not_break_the_start(tmp_path: Path) -> None:
    """A server that imports for twice as long as Ray lets workers register."""
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(20)\n")
    (tmp_path / "command.py").write_text(
        "from pathlib import Path\n"
        "from sfumato.runtime.cluster import private_cluster, ray_cluster\n"
        "private_cluster.LOOPBACK['RAY_worker_register_timeout_seconds'] = '10'\n"
        "with ray_cluster.cluster(2, Path('logs'), modules=['slow_to_import']):\n"
        "    import ray\n"
        "    def parent():\n"
        "        import psutil\n"
        "        return psutil.Process().parent().cmdline()[-1]\n"
        "    found = ray.get(ray.remote(parent).remote())\n"
        "print(found)\n"
    )
    path = os.pathsep.join([str(tmp_path), *(place for place in sys.path if place)])
    done = subprocess.run(
        [sys.executable, "command.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        timeout=400,
        check=True,
    )
    assert done.stdout.strip().endswith("fork_server.py")
