"""Runs against a real embedded MLflow store: what arrives, once, in spite of crashes and absences."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from repository import PLATFORM

from sfumato.data.format.images import png
from sfumato.errors import ConfigError, SfumatoError
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.run import DatasetInfo, Tracker, TrackerHandle
from sfumato.tracking.store import TrackingStore

QUIET = TrackingSettings(system_metrics=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder; the store in it is made once, since MLflow takes seconds for that."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture
def tracker(root: Path, tmp_path: Path) -> Iterator[Tracker]:
    tracker = Tracker.start(QUIET, root=root, folder=tmp_path, run_name="ddpm")
    yield tracker
    tracker.close()


def client(tracker: Tracker) -> MlflowClient:
    return tracker.handle.store.client()


def history(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client(tracker).get_metric_history(tracker.run_id, key))


def grid(value: int) -> bytes:
    return png(np.full((16, 24, 1), value, np.uint8))


def images(tracker: Tracker) -> list[str]:
    listed = client(tracker).list_artifacts(tracker.run_id, "images")
    return sorted(item.path for item in listed if item.path.endswith(".png"))


def test_a_run_records_what_it_is(root: Path, tmp_path: Path) -> None:
    tracker = Tracker.start(
        QUIET.model_copy(update={"tags": {"owner": "ada"}}),
        root=root,
        folder=tmp_path,
        run_name="first",
        params={"model": {"width": 64, "mults": [1, 2]}, "data": {"password": "hunter2"}},
        tags={"sfumato.folder": "s3://key:secret@store/run"},
        dataset=DatasetInfo("digits", "0123456789abcdef", str(tmp_path), {"classes": 10}),
        recipe_yaml="model:\n  width: 64\ndata:\n  password: hunter2\n",
    )
    assert tracker.finish() == 0
    run = client(tracker).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.info.artifact_uri.startswith(f"{(root / 'mlartifacts').as_uri()}/")
    assert run.data.params == {"model.width": "64", "model.mults": "[1, 2]", "data.password": "[hidden]"}
    assert run.data.tags["owner"] == "ada"
    assert run.data.tags["sfumato.folder"] == "s3://[hidden]@store/run"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", "0123456789abcdef")
    folder = Path(client(tracker).download_artifacts(tracker.run_id, "", str(tmp_path)))
    assert "hunter2" not in (folder / "recipe.yaml").read_text()
    assert '"python": "3.' in (folder / "environment.json").read_text()
    assert f"mlflow=={metadata.version('mlflow')}" in (folder / "requirements.txt").read_text().splitlines()
    assert not list(tmp_path.glob("tracking/driver/[0-9]*")), "what has arrived is removed"


STARTER = """
import sys
from pathlib import Path
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.store import TrackingStore

store = TrackingStore.of(TrackingSettings(), Path(sys.argv[1]))
Path(sys.argv[1], "ready" + sys.argv[2]).touch()
while len(list(Path(sys.argv[1]).glob("ready*"))) < 3:
    pass
print(store.experiment(store.create(), "digits"))
"""


def test_the_first_runs_of_a_folder_may_start_at_the_same_moment(tmp_path: Path) -> None:
    """MLflow, left to itself, has each of them make the tables, and all but one fail."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, str(tmp_path), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    answers = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], answers
    assert len({said for said, _ in answers}) == 1, "one experiment"


def test_metrics_arrive_at_their_steps(tracker: Tracker) -> None:
    for step in range(0, 5000, 2):
        tracker.metrics({"train/denoise/loss": 1 / (1 + step), "train/bad key#": 1.0}, step=step)
    tracker.metrics({"eval/nan": math.nan}, step=7)
    assert tracker.close() == 0
    assert history(tracker, "train/denoise/loss") == [(step, 1 / (1 + step)) for step in range(0, 5000, 2)]
    assert len(history(tracker, "train/bad key_")) == 2500
    assert math.isnan(history(tracker, "eval/nan")[0][1])


def test_images_and_artifacts_arrive(tracker: Tracker, tmp_path: Path) -> None:
    tracker.image("samples", grid(10), step=1000)
    tracker.image("samples", grid(20), step=2000)
    report = tmp_path / "report.txt"
    report.write_text("as it was")
    tracker.artifact(report, "reports")
    report.write_text("changed later")
    assert tracker.close() == 0
    assert [path.split("+")[:3] for path in images(tracker)] == [
        ["images/samples", "step", "1000"],
        ["images/samples", "step", "2000"],
    ]
    got = client(tracker).download_artifacts(tracker.run_id, "reports/report.txt", str(tmp_path))
    assert Path(got).read_text() == "as it was"
    stored = client(tracker).download_artifacts(tracker.run_id, images(tracker)[0], str(tmp_path))
    assert Path(stored).read_bytes() == grid(10), "with all that was in the file, such as a signature"


def test_a_resumed_run_logs_each_step_once(tracker: Tracker) -> None:
    """It computes steps 3 and 4 again, as after a restart from the checkpoint at step 2."""
    for step in (1, 2, 3, 4):
        tracker.metrics({"train/loss": 0.5}, step=step)
    tracker.image("samples", grid(1), step=4)
    assert tracker.finish("FAILED") == 0
    settings, spool = tracker.handle.settings, Path(tracker.handle.spool)
    again = Tracker.start(
        settings, root=_root(tracker), folder=spool.parent, run_name="ddpm", run_id=tracker.run_id
    )
    assert client(again).get_run(again.run_id).info.status == "RUNNING"
    for step in (3, 4, 5, 6):
        again.metrics({"train/loss": 0.5}, step=step)
    again.image("samples", grid(1), step=4)
    assert again.finish() == 0
    assert [step for step, _ in history(again, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert len(images(again)) == 1
    assert client(again).get_run(again.run_id).info.status == "FINISHED"


def _root(tracker: Tracker) -> Path:
    database = tracker.handle.store.database
    assert database is not None
    return database.parent


WORKER = """
import pickle, sys, time
from pathlib import Path
handle = pickle.loads(Path(sys.argv[1]).read_bytes())
tracker = handle.open()
for step in range(1, 301):
    tracker.metrics({"train/loss": step / 2}, step=step)
print("logged", flush=True)
time.sleep(60)
"""


def test_what_a_killed_worker_left_is_sent_by_the_next(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "handle").write_bytes(pickle.dumps(tracker.handle))
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path / "handle")],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(PLATFORM), "PATH": "/usr/bin:/bin"},
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "logged\n"
    worker.kill()
    worker.wait()
    restarted = tracker.handle.open()
    for step in range(201, 401):
        restarted.metrics({"train/loss": step / 2}, step=step)
    assert restarted.close() == 0
    assert history(restarted, "train/loss") == [(step, step / 2) for step in range(1, 401)]


def test_a_restarted_worker_waits_until_the_old_one_is_gone(tracker: Tracker) -> None:
    """A process that outlives its driver for some seconds must not log beside its successor."""
    old = tracker.handle.open()
    old.metrics({"train/loss": 1.0}, step=1)
    deadline = time.monotonic() + 600
    while not history(tracker, "train/loss") and time.monotonic() < deadline:
        time.sleep(0.1)  # its sender has the lock once something has come through
    new = tracker.handle.open()
    new.metrics({"train/loss": 1.0}, step=1)
    new.metrics({"train/loss": 1.0}, step=2)
    assert new.close(timeout=1.5) == 2, "the old one still holds the lock"
    assert old.close() == 0
    deadline = time.monotonic() + 600
    while len(history(tracker, "train/loss")) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert history(tracker, "train/loss") == [(1, 1.0), (2, 1.0)]


def unreachable(tracker: Tracker, spool: Path) -> TrackerHandle:
    handle = tracker.handle
    return TrackerHandle(
        store=TrackingStore("http://127.0.0.1:9", None),
        experiment_id=handle.experiment_id,
        run_id=handle.run_id,
        started=handle.started,
        spool=str(spool),
        settings=handle.settings,
    )


def test_a_server_that_is_away_stops_nothing(
    tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = unreachable(tracker, tmp_path / "spool").open()
    begin = time.monotonic()
    for step in range(1000):
        away.metrics({"train/loss": 0.25}, step=step)
    assert time.monotonic() - begin < 1.0
    away.image("samples", grid(3), step=1000)
    assert away.close(timeout=1.0) == 1001
    assert "1001 events" in caplog.text
    assert "127.0.0.1:9" in caplog.text


def test_events_kept_while_the_server_was_away_are_sent_later(root: Path, tmp_path: Path) -> None:
    script = (
        "import pickle, sys, os\nfrom pathlib import Path\n"
        "handle = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "tracker = handle.open()\n"
        "tracker.metrics({'train/loss': 2.0}, step=9)\n"
        "print(tracker.close(timeout=1.0), flush=True)\nos._exit(0)\n"
    )
    tracker = Tracker.start(QUIET, root=root, folder=tmp_path, run_name="later")
    away = unreachable(tracker, Path(tracker.handle.spool))
    (tmp_path / "handle").write_bytes(pickle.dumps(away))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "handle")],
        env={"PYTHONPATH": str(PLATFORM), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"
    tracker.send_left()
    assert history(tracker, "train/loss") == [(9, 2.0)]
    tracker.close()


def test_a_run_goes_on_without_the_server_that_it_was_started_with(
    tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is restarted while the server is down must not wait for somebody to mend that."""
    monkeypatch.setattr(TrackingStore.reach, "__kwdefaults__", {"seconds": 0.5})
    away = TrackingSettings(uri="http://127.0.0.1:9", system_metrics=False)
    known = {"root": tmp_path, "folder": tmp_path / "again", "run_name": "ddpm", "run_id": tracker.run_id}
    with pytest.raises(SfumatoError, match="does not answer"):
        Tracker.start(away, **known)
    again = Tracker.start(away, **known, experiment_id=tracker.experiment_id, started=5.0)
    assert "continues, and what it records waits on disk" in caplog.text
    assert (again.run_id, again.experiment_id, again.handle.started) == (
        tracker.run_id,
        tracker.experiment_id,
        5,
    )
    again.metrics({"train/loss": 1.0}, step=1)
    assert again.close(timeout=0.5) == 1


def test_a_full_spool_drops_and_says_so_once(
    tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handle = unreachable(tracker, tmp_path / "spool")
    small = TrackerHandle(
        store=handle.store,
        experiment_id=handle.experiment_id,
        run_id=handle.run_id,
        started=handle.started,
        spool=handle.spool,
        settings=handle.settings.model_copy(update={"spool_mb": 1}),
    ).open()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for step in range(6):
        small.image("samples", png(noise), step=step)
    assert sum(path.stat().st_size for path in (tmp_path / "spool").rglob("*.png")) <= 2**20
    small.metrics({"train/loss": 1.0}, step=1)
    assert small.close(timeout=0.5) == 3, "two images and the metric"
    assert caplog.text.count("is full") == 1


def test_system_metrics_are_recorded(root: Path, tmp_path: Path) -> None:
    settings = TrackingSettings(system_interval=1.0)
    tracker = Tracker.start(settings, root=root, folder=tmp_path, run_name="busy")
    tracker.sample_system()
    time.sleep(3.5)
    assert tracker.finish() == 0
    assert len(history(tracker, "system/cpu_utilization_percentage")) >= 2


def test_an_unknown_run_and_an_absent_server_are_one_clear_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run 0+ is not in sqlite"):
        Tracker.start(QUIET, root=root, folder=tmp_path, run_name="x", run_id="0" * 32)
    with pytest.raises(SfumatoError, match=r"http://\[hidden\]@127.0.0.1:9 does not answer") as caught:
        TrackingStore("http://user:pass@127.0.0.1:9", None).reach(_refused, seconds=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="name is empty"):
        Tracker.start(QUIET, root=root, folder=tmp_path, run_name=" ")


def _refused() -> None:
    TrackingStore("http://user:pass@127.0.0.1:9", None).client().search_experiments()


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("boom"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "KILLED")],
    ids=["failed", "ctrl-c", "a worker's sigterm"],
)
def test_an_exception_marks_the_run(error: BaseException, status: str, root: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(type(error)),
        Tracker.start(QUIET, root=root, folder=tmp_path, run_name="broken") as tracker,
    ):
        raise error
    assert client(tracker).get_run(tracker.run_id).info.status == status
