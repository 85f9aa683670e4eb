"""A real MLflow server is killed in mid-run and started again: nothing is lost, doubled or slowed."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from waiting import wait_for

from sfumato.data.format.images import png
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.run import Tracker
from sfumato.tracking.store import TrackingStore
from sfumato.tracking.ui import Running, started

STEP_S = 0.02


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Training(threading.Thread):
    """Logs a metric every 20 ms, and a picture every 50 steps, until it is told to stop."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker
        self._told = threading.Event()
        self.step = 0
        self.slowest = 0.0

    def run(self) -> None:
        while not self._told.wait(STEP_S):
            self.step += 1
            begin = time.perf_counter()
            self._tracker.metrics(
                {"train/loss": 1 / self.step, "train/speed": 2.0 * self.step}, step=self.step
            )
            if self.step % 50 == 0:
                self._tracker.image(
                    "samples", png(np.full((8, 8, 1), self.step % 251, np.uint8)), step=self.step
                )
            self.slowest = max(self.slowest, time.perf_counter() - begin)

    def stop(self) -> None:
        self._told.set()
        self.join()


def kill(ui: Running) -> None:
    """As a crash does it: at once, with all its workers."""
    os.killpg(ui.server.pid, signal.SIGKILL)
    ui.server.wait()


def stopped(ui: Running) -> Callable[[int], None]:
    return lambda sign: os.killpg(ui.server.pid, sign)


@pytest.mark.slow
def test_curves_are_complete_after_the_server_was_gone_for_a_minute(tmp_path: Path) -> None:
    outage(tmp_path, away=60.0)


def outage(tmp_path: Path, *, away: float) -> None:
    settings = TrackingSettings(system_metrics=False)
    database = TrackingStore.of(settings, tmp_path)
    database.create()
    port = free_port()
    url = TrackingSettings(uri=f"http://127.0.0.1:{port}", system_metrics=False)
    with started(database, port) as ui:
        tracker = Tracker.start(url, root=tmp_path, folder=tmp_path / "run", run_name="outage")
        training = Training(tracker)
        training.start()
        wait_for("points", lambda: len(points(tmp_path, tracker, "train/loss")) > 50, seconds=600)
        kill(ui)
        killed_at = training.step
    time.sleep(away)
    assert training.step > killed_at + away / STEP_S / 4, "training went on"
    with started(database, port) as ui:
        wait_for("points", lambda: max(points(tmp_path, tracker, "train/loss")) > killed_at + 10, seconds=600)
        hang = stopped(ui)
        hang(signal.SIGSTOP)  # a server that takes requests and never answers
        begin = training.step
        time.sleep(3.0)
        assert training.step > begin + 30, "nor does a server that hangs hold it up"
        hang(signal.SIGCONT)
        training.stop()
        assert tracker.finish(timeout=120) == 0, "all has arrived"
    steps = list(range(1, training.step + 1))
    assert points(tmp_path, tracker, "train/loss") == steps, "each step once, in order, without a gap"
    assert points(tmp_path, tracker, "train/speed") == steps
    client = TrackingStore.of(settings, tmp_path).client()
    values = {m.step: m.value for m in client.get_metric_history(tracker.run_id, "train/speed")}
    assert values == {step: 2.0 * step for step in steps}
    assert sorted(images(client, tracker.run_id)) == [step for step in steps if step % 50 == 0]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert training.slowest < 1.0, "a step waits for the disk and for nothing else"


def points(root: Path, tracker: Tracker, key: str) -> list[int]:
    """Steps of a curve as the store has them, in the order in which they arrived."""
    client = TrackingStore.of(TrackingSettings(), root).client()
    history = client.get_metric_history(tracker.run_id, key)
    return [metric.step for metric in history] or [0]


def images(client: MlflowClient, run_id: str) -> list[int]:
    listed = [item.path for item in client.list_artifacts(run_id, "images")]
    return [int(path.split("+")[2]) for path in listed if path.endswith(".png")]
