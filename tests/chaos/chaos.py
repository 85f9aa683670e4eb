"""Minutes of random failures on the digits recipe, and then the comparison with the calm run.

`make chaos` (ARGS="--minutes 10 --seed 0"). Workers are killed or frozen and the driver is killed, at random
moments, start-up and recovery included; the same command is given again for a driver that died. The run has
to end with the weights of a run that nobody disturbed, bit for bit. Prints what happened and, last, one JSON
line; the exit status is 1 where the run did not survive or a bit differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import yaml

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "pipelines" / "digits" / "ddpm.yaml"
IMAGES_A_MINUTE = 4_800  # about two fifths of what two cores train in one: the rest goes to recovery
BATCH, MICRO_BATCH = 128, 64
HANG_TIMEOUT_S = 10
KINDS = {"worker killed": 5, "worker frozen": 3, "driver killed": 2}
PATIENCE_S = 240.0


class Run:
    """A training run in a folder of its own, by the command that a user gives."""

    def __init__(self, folder: Path, data: Path, images: int) -> None:
        self.folder, self.marks = folder, folder / "marks"
        folder.mkdir()
        content = {
            "base": str(RECIPE),
            "data": {"path": str(data)},
            "model": {"family": "counted:Config"},
            "train": {"images": images, "preview_samples": 0, "checkpoint": {"every": 1_500}},
            "parallel": {"threads_per_worker": 1, "max_failures": 10_000, "hang_timeout": HANG_TIMEOUT_S},
            "tracking": {"system_metrics": False},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
        self.process: subprocess.Popen[str] | None = None
        self.seconds = 0.0

    def start(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.folder.parent),  # where a killed driver leaves what Ray has written
            "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "SFUMATO_CHAOS_MARKS": str(self.marks),
        }
        command = [sys.executable, "-m", "sfumato", "train", "recipe.yaml"]
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._say, args=(self.process,), daemon=True).start()

    def _say(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            print(f"    {line}", end="", file=sys.stderr)

    def family(self) -> list[psutil.Process]:
        """All processes that the driver has started."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def workers(self) -> list[psutil.Process]:
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def checkpoints(self) -> set[str]:
        return {path.parent.name for path in self.folder.glob("runs/*/checkpoints/images-*/manifest.json")}

    def got_on(self, seen: set[str]) -> bool:
        """Whether there is another checkpoint than those, or the run is over."""
        return self.ended() is not None or bool(self.checkpoints() - seen)

    def ended(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def wait(self, seconds: float) -> int:
        assert self.process is not None
        status = self.process.wait(seconds)
        self.seconds += time.monotonic() - self._started
        return status

    def kill(self) -> None:
        """End the driver as a machine does that loses power, and wait until all that it started is gone."""
        left = self.family()
        assert self.process is not None
        self.process.kill()
        self.wait(60)
        _, alive = psutil.wait_procs(left, timeout=30)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=10)

    def weights(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.glob("runs/*/model/*.safetensors")}

    def steps(self) -> float:
        """Steps that were computed, parts of steps and repeated ones included."""
        return self.marks.stat().st_size / (BATCH // MICRO_BATCH)


def torment(run: Run, minutes: float, rng: random.Random) -> Counter[str]:
    """Failures until the time is over or the run is; how many of each kind."""
    end = time.monotonic() + 60 * minutes
    done: Counter[str] = Counter()
    seen = run.checkpoints()
    while time.monotonic() < end and run.ended() is None:
        if rng.random() < 0.8:  # mostly it is left to get on; now and then it is hit while it recovers
            _until(partial(run.got_on, seen), end)
        _until(lambda: run.ended() is not None, min(end, time.monotonic() + rng.uniform(0, 8)))
        workers = run.workers()
        if time.monotonic() >= end or run.ended() is not None:
            break
        (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
        if kind != "driver killed" and not workers:
            kind = "driver killed" if rng.random() < 0.2 else ""
        if kind == "driver killed":
            run.kill()
            run.start()
        elif kind:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim = rng.choice(workers)
                victim.send_signal(signal.SIGKILL if kind == "worker killed" else signal.SIGSTOP)
        if kind:
            done[kind] += 1
            print(f"{kind} ({sum(done.values())})", file=sys.stderr)
        seen = run.checkpoints()
    return done


def _until(met: Callable[[], bool], end: float) -> None:
    while not met() and time.monotonic() < end:
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long failures go on")
    parser.add_argument("--seed", type=int, default=0, help="which failures, when")
    arguments = parser.parse_args()
    steps = round(IMAGES_A_MINUTE * arguments.minutes / BATCH)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    runs = [Run(folder / name, folder / "digits", steps * BATCH) for name in ("calm", "chaos")]
    calm, chaos = runs
    try:
        print("the calm run", file=sys.stderr)
        calm.start()
        if status := calm.wait(PATIENCE_S + 120 * arguments.minutes):
            print(f"the calm run ended with status {status}", file=sys.stderr)
            return 1
        print(f"{arguments.minutes:g} minutes of failures, seed {arguments.seed}", file=sys.stderr)
        chaos.start()
        failures = torment(chaos, arguments.minutes, random.Random(arguments.seed))
        status = chaos.wait(PATIENCE_S + 120 * arguments.minutes)
        same = status == 0 and bool(calm.weights()) and calm.weights() == chaos.weights()
        lost = chaos.seconds - calm.seconds
        total = sum(failures.values())
        result = {
            "seed": arguments.seed,
            "failures_survived": total if status == 0 else 0,
            "failures": dict(failures),
            "status": status,
            "bit_identical": same,
            "steps": steps,
            "steps_repeated": round(chaos.steps() - calm.steps(), 1),
            "calm_s": round(calm.seconds, 1),
            "chaos_s": round(chaos.seconds, 1),
            "time_lost_s": round(lost, 1),
            "time_lost_a_failure_s": round(lost / total, 1) if total else 0.0,
        }
        print(json.dumps(result))
        return 0 if same else 1
    finally:
        for run in runs:
            if run.process is not None and run.ended() is None:
                run.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
