"""What checkpoints and failures cost a run that goes on training.

`checkpoint`: how long the loop stands still for a checkpoint that is written beside it, how much slower its
steps are until that one is complete, and how long a loop would stand still that waits for it.
`recovery`: from the kill -9 of a worker, or of the driver with the same command given at once, to the first
step after it, by the clock of the run's own curve.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from train_loops import PIPELINES

WIDTH, LAYERS = 1024, 48  # of 1024 x 1024 and a bias: 50.4 million parameters


def checkpoint(threads: int) -> dict[str, float]:
    """Seconds of a checkpoint of 50 million parameters with AdamW's moments and an average."""
    from sfumato.core.optimizer import OptimizerConfig
    from sfumato.parallel import ParallelSettings, Placement, make
    from sfumato.training.checkpoint import Writer, complete
    from sfumato.training.store import open_store

    torch.set_num_threads(threads)
    strategy = make(ParallelSettings(strategy="single"), Placement.current())
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    strategy.add_trainable("net", torch.nn.Sequential(*layers), OptimizerConfig(name="adamw"))
    strategy.add_ema("ema", "net")
    strategy.ready()

    def step() -> float:
        start = time.perf_counter()
        with strategy.accumulate("net", last=True):
            strategy.backward("net", strategy.view("net")["net"](torch.ones(256, WIDTH)).square().mean())
        strategy.step("net", lr=1e-3, max_norm=1.0)
        strategy.follow("ema", 0.1)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory(prefix="sfumato-bench-") as folder:
        store = open_store(f"{folder}/checkpoints")
        writer = Writer(
            store,
            keep=1,
            recipe_digest="",
            strategy="single",
            scratch=Path(folder) / "scratch",
        )
        for _ in range(3):
            step()
        calm = statistics.median(step() for _ in range(10))
        stalls, slowed, synchronous = [], [], []
        for images in (1, 3, 5):
            start = time.perf_counter()
            writer.save(strategy.state(), images=images, step=images)
            stalls.append(time.perf_counter() - start)
            during = []
            while not any(saved.images == images for saved in complete(store)) and not writer.failures:
                during.append(step())
            slowed.append(sum(during) - calm * len(during))
            writer.wait()
            start = time.perf_counter()
            writer.save(strategy.state(), images=images + 1, step=images)
            writer.wait()
            synchronous.append(time.perf_counter() - start)
        writer.close()
        if writer.failures:
            raise SystemExit(writer.failures[0])
        tensors = strategy.state().values()
    stall, whole = statistics.median(stalls), statistics.median(synchronous)
    return {
        "mib": sum(t.numel() * t.element_size() for t in tensors) / 2**20,
        "step_s": calm,
        "stall_s": stall,
        "slowed_by_s": statistics.median(slowed),
        "synchronous_s": whole,
        "stall_ratio": stall / whole,
    }


class Victim:
    """`sfumato train` on the digits with two workers, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._said = folder, folder / "said.txt"
        content = {
            "base": str(PIPELINES / "ddpm.yaml"),
            "train": {"images": 10_000_000, "log_every": 128, "preview_samples": 0},
            "parallel": {"threads_per_worker": 1, "max_failures": 100},
            "tracking": {"system_metrics": False},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
        self.start()

    def start(self) -> None:
        with self._said.open("a") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sfumato", "train", "recipe.yaml"],
                cwd=self._folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self._folder)},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def points(self) -> list[tuple[float, int]]:
        """When each step was logged (seconds since the epoch), and its images."""
        from sfumato.tracking.config import TrackingSettings
        from sfumato.tracking.store import TrackingStore

        store = TrackingStore.of(TrackingSettings(), self._folder)
        if store.database is None or not store.database.exists():
            return []
        client = store.client()
        found = []
        with contextlib.suppress(Exception):  # not there yet
            for experiment in client.search_experiments():
                for run in client.search_runs([experiment.experiment_id]):
                    history = client.get_metric_history(run.info.run_id, "train/images_per_second")
                    found += [(point.timestamp / 1000, point.step) for point in history]
        return sorted(found)

    def first_after(self, moment: float, patience: float = 300) -> tuple[float, int]:
        """The first step logged after a moment."""
        end = time.time() + patience
        while time.time() < end:
            if self.process.poll() is not None:
                raise SystemExit(f"the run ended: {self._said.read_text()[-2000:]}")
            for when, images in self.points():
                if when > moment:
                    return when, images
            time.sleep(2)
        raise SystemExit(f"no step within {patience:g} s")

    def started_by_it(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill_a_worker(self) -> None:
        for process in self.started_by_it():
            with contextlib.suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
                    return
        raise SystemExit("the run has no worker")

    def end(self) -> None:
        left = self.started_by_it() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for process in psutil.wait_procs(left, timeout=20)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def recovery() -> dict[str, float]:
    """Seconds from a kill to the next step, and of a first start for comparison."""
    found: dict[str, float] = {}
    # Short, so that Ray's sockets fit below it, and what the killed driver leaves is removed with it.
    with tempfile.TemporaryDirectory(prefix="sf-", ignore_cleanup_errors=True) as folder:
        began = time.time()
        run = Victim(Path(folder))
        try:
            found["first_start_s"] = run.first_after(began)[0] - began
            time.sleep(20)
            killed = time.time()
            run.kill_a_worker()
            # A step that the other worker ended in the same moment is no recovery.
            found["worker_killed_s"] = run.first_after(killed + 2)[0] - killed
            time.sleep(20)
            killed = time.time()
            run.end()
            run.start()
            found["driver_killed_s"] = run.first_after(killed + 5)[0] - killed
        finally:
            run.end()
    return found


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
