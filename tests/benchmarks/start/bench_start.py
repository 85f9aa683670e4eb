"""Where the time goes between a command and its first training step, and again after a failure.

    make bench-start ARGS="--only demo worker"

`demo` is the training stage of `make demo` in an empty folder; `worker` and `driver` kill -9 a rank and the
command of such a run, and wait for the next step (of the command given again); `sweep` is the whole of
pipelines/digits/sweep.yaml. The moments are those that a run records (`logs/start.jsonl`). CPU seconds are
those of all processes of the command together, which on a shared machine compare better than seconds. Take
the table on an idle machine; its load at the start is in the JSON of the last line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[3]
RECIPE = "pipelines/digits/ddpm.yaml"
SWEEP = "pipelines/digits/sweep.yaml"
STEP = "first step"
_EVERY_S = 0.1
_RANK = "ray::RayTrainWorker"


class Command:
    """`sfumato ARGUMENTS` in a folder, with the CPU time of all its processes at any time since its start."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.log = folder / "output.txt"
        self.began = time.time()
        self.samples: list[tuple[float, float]] = [(self.began, 0.0)]
        self._spent: dict[tuple[int, float], float] = {}
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sfumato", *arguments],
                cwd=folder,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Add up the CPU time of the tree of processes; those that ended keep what they had."""
        with contextlib.suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self.process.pid)
            while self.process.poll() is None:
                for process in [driver, *driver.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        spent = process.cpu_times()
                        self._spent[process.pid, process.create_time()] = spent.user + spent.system
                self.samples.append((time.time(), sum(self._spent.values())))
                time.sleep(_EVERY_S)

    def cpu_at(self, moment: float) -> float:
        """CPU seconds of all processes until then."""
        return max((spent for when, spent in self.samples if when <= moment), default=0.0)

    def ranks(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(_RANK):
                    found.append(process)
        return found

    def moments(self) -> list[dict[str, Any]]:
        """All moments that the folder's runs have recorded, in the order of time."""
        lines = [
            json.loads(line)
            for file in self.folder.glob("runs/*/logs/start.jsonl")
            for line in file.read_text().splitlines()
            if line.endswith("}")
        ]
        return sorted(lines, key=lambda line: float(line["time"]))

    def wait_for_step(self, after: float, patience_s: float) -> dict[str, Any]:
        """The first step after that time. Raises RuntimeError with the output if the command ends before."""
        deadline = time.time() + patience_s
        while time.time() < deadline:
            for line in self.moments():
                if line["moment"] == STEP and line["time"] > after:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(_EVERY_S)
        raise RuntimeError(f"no step was made; the command said:\n{self.log.read_text()[-2000:]}")

    def end(self) -> None:
        """Interrupt it, as ctrl-C does, and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(180)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def project() -> Iterator[Path]:
    """An empty project with the pipelines."""
    with tempfile.TemporaryDirectory(prefix="sfumato-start-") as folder:
        shutil.copytree(ROOT / "pipelines" / "digits", Path(folder) / "pipelines" / "digits")
        yield Path(folder)


@contextlib.contextmanager
def training(folder: Path) -> Iterator[Command]:
    """`sfumato train` of the demo's recipe, with a checkpoint early enough to resume from."""
    command = Command(folder, "train", RECIPE, "train.checkpoint.every=2_560")
    try:
        yield command
    finally:
        command.end()


def table(command: Command, title: str, start: float, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Print a line for each moment since `start`; returns seconds and CPU seconds by moment."""
    print(f"\n{title}\n{'':>32} {'at':>8} {'took':>8} {'CPU':>8}")
    before, spent, found = start, command.cpu_at(start), {}
    for line in lines:
        cpu = command.cpu_at(line["time"]) - spent
        print(f"{line['moment']:>32} {line['time'] - start:8.1f} {line['time'] - before:8.1f} {cpu:8.1f}")
        found[line["moment"]] = {"seconds": round(line["time"] - start, 2), "cpu_seconds": round(cpu, 2)}
        before = line["time"]
    return found


def demo(patience_s: float) -> dict[str, Any]:
    """From the command to the first step, and from the start of the training stage."""
    with project() as folder, training(folder) as command:
        step = command.wait_for_step(command.began, patience_s)
        lines = [line for line in command.moments() if line["time"] <= step["time"]]
        found = table(command, "make demo, training stage", command.began, lines)
        stage = next(line["time"] for line in lines if line["moment"] == "data packed and checked")
        cpu = command.cpu_at(step["time"]) - command.cpu_at(stage)
        print(f"{'from packed data to the step':>32} {step['time'] - stage:8.1f} {'':8} {cpu:8.1f}")
        seconds = round(step["time"] - command.began, 2)
        return {"moments": found, "seconds": seconds, "stage_seconds": round(step["time"] - stage, 2)}


def _after_a_checkpoint(command: Command, patience_s: float) -> None:
    command.wait_for_step(command.began, patience_s)
    deadline = time.time() + patience_s
    while not list(command.folder.glob("runs/*/checkpoints/*/manifest.json")):
        if time.time() > deadline or command.process.poll() is not None:
            raise RuntimeError(f"no checkpoint was written:\n{command.log.read_text()[-2000:]}")
        time.sleep(_EVERY_S)


def _killed(title: str, command: Command, start: float, patience_s: float) -> dict[str, Any]:
    step = command.wait_for_step(start, patience_s)
    lines = [line for line in command.moments() if start < line["time"] <= step["time"]]
    found = table(command, title, start, lines)
    return {"moments": found, "seconds": round(step["time"] - start, 2)}


def worker(patience_s: float) -> dict[str, Any]:
    """From kill -9 of a rank to the next step."""
    with project() as folder, training(folder) as command:
        _after_a_checkpoint(command, patience_s)
        start = time.time()
        command.ranks()[-1].kill()
        return _killed("kill -9 of a worker", command, start, patience_s)


def driver(patience_s: float) -> dict[str, Any]:
    """From kill -9 of the command, which is given again at once, to the next step."""
    with project() as folder:
        with training(folder) as command:
            _after_a_checkpoint(command, patience_s)
            command.process.kill()
        start = time.time()
        with training(folder) as again:
            return _killed("kill -9 of the command, given again", again, start, patience_s)


def sweep(patience_s: float) -> dict[str, Any]:
    """The whole sweep of 12 trials."""
    with project() as folder:
        command = Command(folder, "tune", SWEEP)
        try:
            command.process.wait(10 * patience_s)
        finally:
            command.end()
        seconds, cpu = time.time() - command.began, command.samples[-1][1]
        if command.process.returncode:
            raise RuntimeError(f"the sweep failed:\n{command.log.read_text()[-2000:]}")
        print(f"\nsweep of 12 trials\n{'':>32} {seconds:8.1f} {'':8} {cpu:8.1f}")
        return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}


GOALS = {"demo": (15, 39), "worker": (12, 26), "driver": (35, 71), "sweep": (240, 494)}
"""Seconds on two idle cores: what is wanted, and what version 0.1 took."""
PARTS: dict[str, Callable[[float], dict[str, Any]]] = {
    "demo": demo,
    "worker": worker,
    "driver": driver,
    "sweep": sweep,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--patience", type=float, default=600, help="seconds to wait for a step")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found: dict[str, Any] = {"benchmark": "start", "load": round(load, 2)}
    for part in options.only:
        print(f"{part}: started", file=sys.stderr, flush=True)
        try:
            found[part] = PARTS[part](options.patience)
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:  # the others are measured still
            print(f"{part}: {error}", file=sys.stderr, flush=True)
            found[part] = {"failed": str(error)}
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"\n{'':>32} {'seconds':>8} {'goal':>8} {'0.1':>8}")
    for part in options.only:
        seconds = found[part].get("seconds", float("nan"))
        print(f"{part:>32} {seconds:8.1f} {GOALS[part][0]:8} {GOALS[part][1]:8}")
    print()
    print(json.dumps(found), flush=True)
    sys.exit(any("failed" in found[part] for part in options.only))


if __name__ == "__main__":
    main()
