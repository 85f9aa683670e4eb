"""What a cluster has, on one machine and without containers: object store, PostgreSQL, MLflow, Ray.

    python infra/local/stack.py up        # make stack-up
    . .stack/env                          # addresses and credentials, for sfumato and the clients of each
    python infra/local/stack.py status
    python infra/local/stack.py down      # make stack-down; data stays in .stack, `rm -r` it to begin anew

Everything listens on 127.0.0.1 and asks for credentials, which are made for this stack. With --nodes 2 the
Ray cluster has a head without work (127.0.0.2) and a worker (127.0.0.3); Ray's nodes then listen on every
interface, guarded by the token (their metrics, which can only be read, are not). Where PostgreSQL is not
installed, MLflow uses sqlite.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from processes import Processes, StackError
from services import programs
from settings import Settings

# In the order in which they are ended: users before what they use.
_NAMES = ("ray-worker", "ray-head", "mlflow", "postgresql", "object-store")


def up(folder: Path, nodes: int, cpus: int) -> None:
    """Start what does not run yet, and say how to use it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # PostgreSQL's user has to reach its folder; secrets are in files of mode 600
    settings, processes = Settings(folder, nodes), Processes(folder / "run")
    if processes.running("ray-head") and bool(processes.running("ray-worker")) != (nodes > 1):
        raise StackError("the Ray cluster runs with another number of nodes: end it first (make stack-down)")
    for program in programs(settings, _scratch(folder), cpus):
        processes.start(program)
        print(f"{program.name}: up", flush=True)
    environment = settings.write_environment()
    print(f"MLflow {settings.url('mlflow')}   Ray {settings.url('dashboard')}   S3 {settings.url('s3')}")
    print(f"Addresses and credentials: . {environment}")


def down(folder: Path) -> None:
    """End what runs, and clear Ray's session away; data and the logs of each program stay."""
    processes = Processes(folder / "run")
    for name in _NAMES:
        if processes.stop(name):
            print(f"{name}: down", flush=True)
    known = folder / "scratch"
    if known.exists():
        shutil.rmtree(known.read_text(), ignore_errors=True)
        known.unlink()


def status(folder: Path) -> bool:
    """Print what runs; whether it is a stack."""
    processes = Processes(folder / "run")
    running = {name: processes.running(name) for name in reversed(_NAMES)}
    for name, process in running.items():
        print(f"{name}: {f'up, process {process.pid}' if process else 'down'}")
    # One that needs no second node or no PostgreSQL is whole without.
    return all(running[name] for name in ("object-store", "mlflow", "ray-head"))


def _scratch(folder: Path) -> Path:
    """A folder for Ray's sockets, whose paths may have 107 characters; the same for every call."""
    known = folder / "scratch"
    if known.exists() and Path(known.read_text()).is_dir():
        return Path(known.read_text())
    made = tempfile.mkdtemp(prefix="sfumato-stack-")
    known.write_text(made)
    return Path(made)


def main() -> int:
    """One command; errors are one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument(
        "--folder", type=Path, default=Path(".stack"), help="where the stack keeps its things"
    )
    parser.add_argument("--nodes", type=int, choices=(1, 2), default=1, help="nodes of the Ray cluster")
    parser.add_argument(
        "--cpus", type=int, default=max(4, os.cpu_count() or 1), help="logical CPUs that Ray hands out"
    )
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    try:
        if arguments.command == "up":
            up(folder, arguments.nodes, arguments.cpus)
        elif arguments.command == "down":
            down(folder)
        else:
            return 0 if status(folder) else 1
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
