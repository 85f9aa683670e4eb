"""What a cluster has, on one machine and without containers: object store, PostgreSQL, MLflow, Ray.

    python infra/local/stack.py up        # make stack-up
    . .stack/env                          # addresses and credentials, for sfumato and the clients of each
    python infra/local/stack.py status
    python infra/local/stack.py down      # make stack-down; data stays in .stack, `rm -r` it to begin anew

Everything listens on loopback and asks for credentials, which are made for this stack. The Ray cluster has
two nodes, 127.0.0.2 (head, no work) and 127.0.0.3. Where PostgreSQL is not installed, MLflow uses sqlite.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from processes import Processes, StackError
from services import programs
from settings import Settings

# In the order in which they are ended: users before what they use.
_NAMES = ("ray-worker", "ray-head", "mlflow", "postgresql", "object-store")


def up(folder: Path, cpus: int) -> None:
    """Start what does not run yet, and say how to use it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # PostgreSQL's user has to reach its folder; secrets are in files of mode 600
    settings, processes = Settings(folder), Processes(folder / "run")
    for program in programs(settings, _scratch(folder), cpus):
        processes.start(program)
        print(f"{program.name}: up", flush=True)
    environment = settings.write_environment()
    print(f"MLflow {settings.url('mlflow')}   Ray {settings.url('dashboard')}   S3 {settings.url('s3')}")
    print(f"Addresses and credentials: . {environment}")


def down(folder: Path) -> None:
    """End what runs."""
    processes = Processes(folder / "run")
    for name in _NAMES:
        if processes.stop(name):
            print(f"{name}: down", flush=True)


def status(folder: Path) -> bool:
    """Print what runs; whether all of it does."""
    processes = Processes(folder / "run")
    running = {name: processes.running(name) for name in reversed(_NAMES)}
    for name, process in running.items():
        print(f"{name}: {f'up, process {process.pid}' if process else 'down'}")
    return all(running.values())


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
    parser.add_argument(
        "--cpus", type=int, default=max(4, os.cpu_count() or 1), help="logical CPUs of the worker node"
    )
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    try:
        if arguments.command == "up":
            up(folder, arguments.cpus)
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
