"""`tracking.enabled: false`: nothing is recorded, and what needs records is refused in one line."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import yaml

from sfumato import cli
from sfumato.errors import ConfigError
from sfumato.runtime.pipeline import settings as pipelines
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.off import NoTracker
from sfumato.tracking.run import Tracker

RECIPE = {
    "name": "a",
    "data": {"path": "d"},
    "model": {"family": "gan"},
    "train": {"images": 640},
    "tracking": {"enabled": False},
}


def test_a_tracker_that_is_off_takes_all_and_writes_nothing(tmp_path: Path) -> None:
    off = TrackingSettings(enabled=False, uri="http://127.0.0.1:1")  # nobody is asked
    with Tracker.start(off, root=tmp_path, folder=tmp_path, run_name="a") as tracker:
        there = pickle.loads(pickle.dumps(tracker.handle)).open("train")  # noqa: S301 - as Ray sends it
        for each in (tracker, there):
            assert isinstance(each, NoTracker) and each.run_id == ""
            each.sample_system()
            each.metrics({"train/loss": 1.0}, step=1)
            each.image("samples", b"a PNG", step=1)
            each.artifact(tmp_path / "missing")
            each.tags({"a": 1})
            each.send_left()
            assert each.close() == 0
    assert not list(tmp_path.iterdir())


def test_sweeps_and_pipelines_need_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tune = {"metric": "train/x", "space": {"train.batch": {"grid": [64, 128]}}, "search": {"kind": "grid"}}
    Path("sweep.yaml").write_text(yaml.safe_dump({**RECIPE, "tune": tune}))
    monkeypatch.setattr(sys, "argv", ["sfumato", "tune", "sweep.yaml", "--dry-run"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2 and "tracking.enabled: false, but a sweep" in capsys.readouterr().err

    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    stages = {"train": {"kind": "train", "recipe": "recipe.yaml"}}
    for content in ({"stages": stages}, {"stages": stages, "tracking": {"enabled": False}}):
        Path("pipeline.yaml").write_text(yaml.safe_dump({"name": "p", **content}))
        with pytest.raises(ConfigError, match=r"tracking\.enabled: false, but a pipeline"):
            pipelines.load(Path("pipeline.yaml"), [], root=tmp_path)


def test_a_new_record_of_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.setattr(sys, "argv", ["sfumato", "train", "recipe.yaml", "--new-record"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2 and "contradict each other" in capsys.readouterr().err
