"""Pipeline files: what is wrong is said in one line, before anything is started; plans, without running."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import PIPELINES

from sfumato import cli
from sfumato.runtime.pipeline.plan import again_from, examine, plan
from sfumato.runtime.pipeline.records import Records, StageRecord
from sfumato.runtime.pipeline.settings import Pipeline, is_pipeline, load
from sfumato.runtime.pipeline.stage import digest

RECIPES = PIPELINES / "digits"


def content(**stages: dict[str, Any]) -> dict[str, Any]:
    return {"name": "test", "stages": stages}


PACK = {"kind": "pack", "source": {"kind": "digits"}, "dest": "data/digits"}
TRAIN = {"kind": "train", "recipe": str(RECIPES / "ddpm.yaml"), "set": {"data.path": "${images.data}"}}
EVALUATE = {"kind": "evaluate", "run": "${train.run}"}
GATE = {"kind": "gate", "report": "${quality.report}", "model": "${train.model}", "name": "digits"}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The one line that a bad pipeline gets from the command line."""
    monkeypatch.chdir(tmp_path)

    def called(pipeline: dict[str, Any], *arguments: str) -> str:
        Path("pipeline.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
        monkeypatch.setattr(sys, "argv", ["sfumato", "run", "pipeline.yaml", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert left.value.code == 2 and out == "" and "Traceback" not in err, err
        assert err.count("error:") == len(err.strip().splitlines()) == 1, err
        assert not Path("runs").exists() and not Path("data").exists(), "nothing was started"
        return err

    return called


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ({"a": {**PACK, "needs": ["b"]}, "b": {**PACK, "needs": ["a"]}}, "in a cycle: "),
        ({"a": {**PACK, "needs": ["a"]}}, "in a cycle: a -> a"),
        ({"images": PACK, "train": {**TRAIN, "needs": ["imags"]}},
         "stages.train.needs: there is no stage 'imags'; did you mean 'images'?"),
        ({"images": PACK, "train": {**TRAIN, "kind": "trian"}},
         "stages.train.kind: got 'trian'; did you mean 'train'?"),
        ({"images": {"source": "digits"}}, "stages.images.kind: required, one of evaluate, gate,"),
        ({"train": TRAIN}, "${images.data} refers to stage 'images', which is not there"),
        ({"images": PACK, "train": {**TRAIN, "set": {"data.path": "${images.folder}"}}},
         "${images.folder}: a stage of kind pack gives data, val"),
        ({"images": PACK, "train": {**TRAIN, "set": {"data.path": "${images}"}}},
         "${images}: a stage of kind pack gives data, val"),
        ({"images": PACK, "train": {**TRAIN, "recipe": "nowhere.yaml"}}, "stages.train: recipe"),
        ({"images": PACK, "train": {**TRAIN, "set": {"train.imges": 3}}},
         "stages.train: train.imges: unknown key; did you mean 'images'?"),
        ({"images": PACK, "train": {**TRAIN, "set": {"train.batch": 100, "train.micro_batch": None}}},
         "stages.train: train.batch"),
        ({"images": {**PACK, "dst": "x"}}, "stages.images.dst: unknown key; did you mean 'dest'?"),
        ({"images": {**PACK, "dest": "s3://bucket/x"}}, "stages.images: dest: s3://bucket/x"),
        ({"images": {**PACK, "source": {"kind": "folder", "path": "none"}}}, "stages.images: source.path: "),
        ({"images": {**PACK, "needs": "all"}}, "stages.images.needs: expected a list of stages, got 'all'"),
        ({"Images": PACK}, "stages.Images: a stage's name begins with a letter"),
        ({"images": PACK, "train": TRAIN, "quality": {**EVALUATE, "set": {"sampels": 3}}},
         "set.sampels: unknown key; did you mean 'samples'?"),
        ({"images": PACK, "train": TRAIN, "quality": EVALUATE, "gate": {**GATE, "require": ["recall high"]}},
         "stages.gate.require: is not of the form"),
        ({"images": PACK, "train": TRAIN, "quality": EVALUATE, "more": {**EVALUATE, "set": {"seed": 1}}},
         "stages.more: stage quality evaluates the same run"),
        ({}, "stages: "),
    ],
)  # fmt: skip
def test_a_bad_pipeline_gets_one_line(stages: dict[str, Any], expected: str, refused: Any) -> None:
    assert expected in refused(content(**stages))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "iamges"], "--from iamges: there is no such stage; did you mean 'images'?"),
        (["--fresh"], "`--from STAGE` reruns the stages of a pipeline"),
        (["trian.train.images=3"], "there is no stage 'trian'; did you mean 'train'?"),
        (["images.colour=3"], "a stage of kind pack has dest, kind, max_errors"),
        (["train.train.images=no"], "stages.train: train.images: "),
        (["at_once=0"], "at_once: "),
        (["at_onec=1"], "at_onec: unknown key; did you mean 'at_once'?"),
        (["images"], "is not of the form key=value"),
    ],
)
def test_bad_arguments_get_one_line(arguments: list[str], expected: str, refused: Any) -> None:
    assert expected in refused(content(images=PACK, train=TRAIN), *arguments)


def test_a_recipe_has_no_plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sfumato", "run", str(RECIPES / "ddpm.yaml"), "--dry-run"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "--dry-run and --from are for pipelines" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(PIPELINES.rglob("pipeline.yaml")), ids=lambda path: path.parts[-3])
def test_the_pipelines_that_come_with_it_are_well_formed(path: Path, tmp_path: Path) -> None:
    assert is_pipeline(path)
    pipeline = load(path, [], root=tmp_path)
    kinds = [pipeline.settings.stages[name]["kind"] for name in pipeline.order]
    latents = {"precompute"} if path.parent.name == "latent_diffusion" else set()
    assert set(kinds) == {"pack", "train", "evaluate", "gate", "register"} | latents
    assert not any(is_pipeline(other) for other in path.parent.parent.glob("*.yaml"))


@pytest.fixture
def pipeline(tmp_path: Path, digits_data: Path) -> Pipeline:
    """Real digits, packed by somebody else, as the outputs of a finished stage `images`."""
    (tmp_path / "pipeline.yaml").write_text(
        yaml.safe_dump(content(images={**PACK, "dest": str(digits_data)}, train=TRAIN, quality=EVALUATE))
    )
    return load(tmp_path / "pipeline.yaml", [], root=tmp_path)


def finish(
    pipeline: Pipeline, records: Records, name: str, outputs: dict[str, Any], before: dict[str, Any]
) -> None:
    step = examine(pipeline, records, name, before)
    assert step.inputs is not None
    records.finish(name, StageRecord(digest(step.inputs), step.inputs, outputs, 1.0, 1.0))


def test_a_plan_says_what_is_done_and_why_the_rest_is_not(pipeline: Pipeline, digits_data: Path) -> None:
    from sfumato.data.format.manifest import Manifest

    records = Records(pipeline.state)
    assert [step.state for step in plan(pipeline, records)] == ["run", "wait", "wait"]
    packed = {"data": str(digits_data), "digest": Manifest.load(digits_data).digest, "samples": 1797}
    finish(pipeline, records, "images", packed, {})
    images, train, quality = plan(pipeline, records)
    assert (images.state, train.state, quality.state) == ("done", "run", "wait")
    assert train.why == "not done yet" and "train" in quality.why

    trained = {"run": "gone", "model": "gone", "digest": "0", "images": 1}
    finish(pipeline, records, "train", trained, {"images": packed})
    assert plan(pipeline, records)[1].why == "its output is missing or was changed"

    path = pipeline.place.folder / "pipeline.yaml"
    changed = load(path, ["train.train.images=100", "train.seed=3"], root=pipeline.place.root)
    why = plan(changed, records)[1].why
    assert "train.images: 48000 -> 100" in why and "seed: default -> 3" in why
    workers = load(path, ["train.parallel.workers=1"], root=pipeline.place.root)
    assert "workers" not in plan(workers, records)[1].why, "which changes no number"

    again = again_from(pipeline, "train")
    assert again == {"train", "quality"}
    assert [step.why for step in plan(pipeline, records, again)][1] == "asked for by --from"
    assert not records.again("train"), "a plan changes nothing"


def test_an_order_to_do_a_stage_anew_outlives_a_killed_call(tmp_path: Path) -> None:
    records = Records(tmp_path)
    record = StageRecord("k" * 64, {"a": 1}, {"digest": "1"}, 1.0, 1.0)
    records.finish("train", record)
    records.order_again(["train"])
    run = tmp_path / "run-2"
    run.mkdir()
    records.began("train", run)
    assert Records(tmp_path).begun("train") is None, "nothing was written there yet"
    (run / "run.json").write_text("{}")
    assert Records(tmp_path).again("train") and Records(tmp_path).begun("train") == run
    records.finish("train", record)
    assert not Records(tmp_path).again("train")
    assert Records(tmp_path).find("train", "k" * 64) == record
    assert Records(tmp_path).find("train", "l" * 64) is None


def test_one_call_at_a_time(tmp_path: Path) -> None:
    from sfumato.errors import ConfigError

    records = Records(tmp_path)
    running = pytest.raises(ConfigError, match=r"process \d+ is running this pipeline already")
    with records.locked(), running, Records(tmp_path).locked():
        pass
    with records.locked():
        assert json.loads((tmp_path / "lock").read_text()) > 1
