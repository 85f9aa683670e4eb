"""A pipeline on real digits: stages on Ray, a branch that fails, what is skipped, gate and champion."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from repository import DIGITS

from sfumato.errors import ConfigError, SfumatoError
from sfumato.evaluation.report import read_report
from sfumato.families.flow import Config
from sfumato.runtime.pipeline.kinds.gate import GateClosed, GateStage
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.stage import Outputs, Work
from sfumato.runtime.runs.display import Display
from sfumato.tracking.champion import champion_of, set_alias
from sfumato.tracking.config import TrackingSettings

pytestmark = pytest.mark.usefixtures("ray_local")
CLASSIFIER = {"classifier": {"seen": 600, "base": 8, "dim": 16}}
FEW = {"samples": 64, "actors": 0, "feature_options": CLASSIFIER, "accept_weak_features": True}
BETTER = ["fd_classifier", "recall"]


def recipe() -> dict[str, Any]:
    return {
        "base": str(DIGITS.with_name("glow.yaml")),
        "name": "tiny",
        "model": Config.tiny().model_dump(mode="json"),
        "train": {"images": 256, "preview_samples": 0, "checkpoint": {"every": 256}},
        "data": {"source": None},
        "parallel": {"strategy": "single", "workers": 1, "threads_per_worker": 1},
        "tracking": {"system_metrics": False},
        "evaluate": FEW,
    }


def pipeline() -> dict[str, Any]:
    """Two branches: `lost` looks for data that is not there, and `lost_quality` depends on it."""
    return {
        "name": "both",
        "stages": {
            "register": {
                "kind": "register",
                "run": "${model.run}",
                "name": "${gate.name}",
                "alias": "${gate.alias}",
            },
            "images": {"kind": "pack", "source": {"kind": "digits"}, "dest": "data/digits"},
            "lost": {"kind": "train", "recipe": "tiny.yaml", "set": {"data.path": "data/none"}},
            "lost_quality": {"kind": "evaluate", "run": "${lost.run}", "set": FEW},
            "model": {"kind": "train", "recipe": "tiny.yaml", "set": {"data": {"path": "${images.data}"}}},
            "quality": {"kind": "evaluate", "run": "${model.run}"},
            "gate": {
                "kind": "gate",
                "report": "${quality.report}",
                "model": "${quality.model}",
                "name": "digits",
                "require": ["recall >= 0", "fd_classifier < 1e9"],
                "better": BETTER,
            },
        },
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe()))
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline(), sort_keys=False))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def call(project: Path, sfumato_here: Any) -> Any:
    """`sfumato run pipeline.yaml`: (status, JSON, standard error)."""

    def called(*arguments: str) -> tuple[int, dict[str, Any], str]:
        status, out, err = sfumato_here("run", "pipeline.yaml", "--json", *arguments)
        return status, json.loads(out), err

    return called


def store(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def runs(project: Path) -> dict[str, Any]:
    client = store(project)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_name: run for run in client.search_runs(ids)}


@pytest.fixture(scope="module")
def first(project: Path) -> dict[str, Any]:
    """Filled by the first call, which later tests build on."""
    return {}


def test_a_stage_that_fails_stops_what_depends_on_it_and_nothing_else(
    call: Any, project: Path, first: dict[str, Any]
) -> None:
    status, report, err = call()
    assert status == 1, err
    assert "stage lost failed: data.path=" in err and "no manifest.json" in err
    states = {name: stage["state"] for name, stage in report["stages"].items()}
    assert (states.pop("lost"), states.pop("lost_quality")) == ("failed", "not run")
    assert all(state.endswith(" s") for state in states.values()), err
    first.update({name: stage["outputs"] for name, stage in report["stages"].items()})
    assert first["model"]["images"] == 256
    assert first["register"] == {**first["register"], "version": "1", "alias": "champion"}
    assert first["quality"]["metrics"] == dict(read_report(Path(first["quality"]["report"])).metrics)


def test_mlflow_has_the_pipeline_as_parent_of_its_stages(project: Path, first: dict[str, Any]) -> None:
    found = runs(project)
    parent = found["both"]
    assert (parent.info.status, parent.data.params["stages.gate"]) == ("FAILED", "gate")
    for name, stage in (("both-images", "images"), ("tiny", "model"), ("both-gate", "gate")):
        tags = found[name].data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert (tags["sfumato.pipeline"], tags["sfumato.stage"]) == ("both", stage)
        assert parent.data.tags[f"sfumato.stage.{stage}"] == found[name].info.run_id
        assert found[name].info.status == "FINISHED"
    assert found["both-images"].data.metrics["samples"] == 1797
    assert found["both-gate"].data.metrics["recall"] == first["quality"]["metrics"]["recall"]
    assert parent.data.metrics["quality/recall"] == first["quality"]["metrics"]["recall"]
    version = store(project).get_model_version_by_alias("digits", "champion")
    assert (str(version.version), version.run_id) == ("1", found["tiny"].info.run_id)


def test_the_next_call_does_only_what_is_left(call: Any, project: Path, first: dict[str, Any]) -> None:
    """Mended so that the failed branch trains the same recipe on the same data: it is trained already."""
    before = runs(project)["both"].info.run_id
    status, report, err = call(f"lost.data.path={project / 'data' / 'digits'}")
    assert status == 0, err
    states = {name: stage["state"] for name, stage in report["stages"].items()}
    assert {name for name, state in states.items() if state != "done before"} == {"lost", "lost_quality"}
    assert "✓ lost: train: 256 images, done before" in err
    assert report["stages"]["lost"]["outputs"]["digest"] == first["model"]["digest"]
    assert report["stages"]["register"]["outputs"]["version"] == "1", "no second version of the same model"
    assert report["mlflow_run_id"] == before, "it goes on with the interrupted call's run"
    assert runs(project)["both"].info.status == "FINISHED"
    assert str(store(project).get_model_version_by_alias("digits", "champion").version) == "1"


def test_what_is_done_is_not_touched_and_a_change_reaches_what_depends_on_it(
    call: Any, project: Path
) -> None:
    mended = f"lost.data.path={project / 'data' / 'digits'}"
    count = len(runs(project))
    status, report, _ = call(mended)
    assert status == 0 and report["mlflow_run_id"] is None
    assert {stage["state"] for stage in report["stages"].values()} == {"done before"}
    assert len(runs(project)) == count

    _, plan, _ = call(mended, "quality.samples=80", "--dry-run")
    states = {name: stage["state"] for name, stage in plan["stages"].items()}
    assert states == {**dict.fromkeys(states, "done"), "quality": "run", "gate": "wait", "register": "wait"}
    assert plan["stages"]["quality"]["why"] == "settings.samples: 64 -> 80"
    _, plan, _ = call(mended, "--from", "model", "--dry-run")
    assert {name for name, stage in plan["stages"].items() if stage["state"] != "done"} == {
        "model", "quality", "gate", "register"
    }  # fmt: skip
    (shard,) = (project / "data" / "digits").glob("*.tar")
    (project / "tiny.yaml").write_text(yaml.safe_dump({**recipe(), "seed": 7}))
    _, plan, _ = call(mended, "--dry-run")
    assert plan["stages"]["model"]["why"] == "seed: default -> 7"
    assert plan["stages"]["images"]["state"] == "done" and shard.is_file()


def measured(first: dict[str, Any], folder: Path, shift: float) -> Path:
    """The report of another model, whose figures are all better (or worse) by so much."""
    report = read_report(Path(first["quality"]["report"]))
    signs = {name: 1 if higher else -1 for name, higher in report.higher_is_better.items()}
    intervals = {
        name: {**found, **{end: float(str(found[end])) + signs[name] * shift for end in ("low", "high")}}
        for name, found in report.intervals.items()
    }
    metrics = {name: value + signs[name] * shift for name, value in report.metrics.items()}
    dataclasses.replace(report, metrics=metrics, intervals=intervals).write(folder)
    card = json.loads(Path(first["model"]["model"], "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, "images": 1}))
    return folder


def gate(project: Path, report: Path, **changes: Any) -> Outputs:
    stage = {"kind": "gate", "report": str(report), "model": str(report), "name": "digits", "better": BETTER}
    work = Work(place=PipelinePlace(project, project), display=Display())
    return GateStage.model_validate(stage | changes).perform(work)


def test_the_gate_compares_with_the_champion_by_intervals(
    project: Path, first: dict[str, Any], tmp_path: Path
) -> None:
    assert gate(project, measured(first, tmp_path, 1e6))["alias"] == "champion"
    alike = gate(project, measured(first, tmp_path, 1e-9))
    assert alike["alias"] == "challenger" and "is not beyond" in alike["reason"]
    assert gate(project, measured(first, tmp_path, 1e6), better=[])["alias"] == "challenger"
    itself = gate(project, measured(first, tmp_path, 0), model=first["model"]["model"])
    assert itself["alias"] == "champion", "it is"
    assert gate(project, measured(first, tmp_path, -1), name="unknown")["alias"] == "champion", "the first"


def test_a_closed_gate_and_one_that_cannot_judge_say_why(
    project: Path, first: dict[str, Any], tmp_path: Path
) -> None:
    report = measured(first, tmp_path, 0)
    with pytest.raises(GateClosed, match=r"not good enough: recall is .*, required > 2"):
        gate(project, report, require=["recall > 2", "precision >= 0"])
    with pytest.raises(
        ConfigError, match=r"gate on 'recal', which was not measured; the report has .*recall"
    ):
        gate(project, report, require=["recal > 2"])
    fewer = dataclasses.replace(read_report(report), samples=50)
    fewer.write(tmp_path)
    with pytest.raises(
        SfumatoError, match=r"version 1 of digits, the champion, was not evaluated on the same"
    ):
        gate(project, tmp_path)


def test_an_alias_moves_and_a_champion_is_no_challenger(project: Path, first: dict[str, Any]) -> None:
    settings, client = TrackingSettings(), store(project)
    champion = champion_of(settings, "digits", root=project)
    assert champion is not None and champion.digest == first["model"]["digest"]
    second = client.create_model_version(
        "digits", client.get_model_version("digits", "1").source, run_id=champion.run_id
    ).version
    assert set_alias(settings, "digits", "challenger", str(second), root=project) is None
    assert set_alias(settings, "digits", "champion", str(second), root=project) == "1"
    aliases = client.get_registered_model("digits").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": str(second)}
    with pytest.raises(ConfigError, match="no version 9 of model 'digits'"):
        set_alias(settings, "digits", "champion", "9", root=project)
