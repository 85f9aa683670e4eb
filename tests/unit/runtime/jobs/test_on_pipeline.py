"""A submitted pipeline is the same one there; recipes are sent beside it, room is looked for by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sfumato.errors import ConfigError
from sfumato.families.flow import Config
from sfumato.runtime.jobs import needs, package, parsing
from sfumato.runtime.jobs.groups import groups_of
from sfumato.runtime.jobs.submit import SubmitOptions, read
from sfumato.runtime.pipeline import settings

RECIPE = {
    "name": "tiny",
    "data": {"path": "/data", "streams": 64},
    "model": Config.tiny().model_dump(mode="json"),
    "train": {"images": 512, "batch": 128},
    "evaluate": {"actors": 3, "cpus_per_actor": 2},
    "storage": "/runs",
}
PIPELINE: dict[str, Any] = {
    "name": "night",
    "storage": "/runs",
    "tracking": {"uri": "http://mlflow:5000"},
    "stages": {
        "images": {"kind": "pack", "source": {"kind": "digits"}, "dest": "/data/digits"},
        "first": {"kind": "train", "recipe": "../tiny.yaml", "set": {"data.path": "${images.data}"}},
        "codes": {
            "kind": "precompute",
            "encoder": "${first.model}",
            "data": "${images.data}",
            "dest": "/data/codes",
            "actors": 2,
            "gpus_per_actor": 1,
        },
        "second": {
            "kind": "train",
            "recipe": "wide.yaml",
            "set": {"data.path": "${codes.data}", "parallel.workers": 4},
        },
        "quality": {"kind": "evaluate", "run": "${second.run}", "set": {"actors": 9}},
    },
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "night").mkdir()
    (tmp_path / "night" / "wide.yaml").write_text("base: ../tiny.yaml\nname: wide\n")
    (tmp_path / "night" / "pipeline.yaml").write_text(yaml.safe_dump(PIPELINE, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(*words: str) -> parsing.Command:
    return parsing.parse(["run", "night/pipeline.yaml", *words], trust=False)


def test_the_package_holds_the_same_pipeline(project: Path) -> None:
    command = parsed("second.parallel.workers=2", "--from", "codes")
    placed = package.order(command, root="/shared", secrets=())
    files = package.files_of(command, placed, root=project)
    for name, content in files.items():
        (project / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "there" / name).write_bytes(content)
    assert command.arguments == ("--from", "codes"), "overrides are in the file"
    there = settings.load(project / "there" / str(placed.file), [], root=project)
    here = settings.load(project / "night" / "pipeline.yaml", ["second.parallel.workers=2"], root=project)
    assert there.order == here.order
    assert [use.recipe for use in there.uses()] == [use.recipe for use in here.uses()]
    assert [use.recipe.parallel.workers for use in there.uses() if use.recipe and use.trains] == [1, 2]
    assert command.title == "night" and command.tracking == "http://mlflow:5000"


def test_equal_pipelines_have_one_name_and_others_another(project: Path) -> None:
    assert parsed().run == parsed().run != parsed("quality.samples=70").run
    (project / "tiny.yaml").write_text(yaml.safe_dump({**RECIPE, "seed": 4}))
    assert parsed().run != parsing.parse(["run", "night/pipeline.yaml", "at_once=1"], trust=False).run


def test_room_is_looked_for_stage_by_stage(project: Path) -> None:
    wanted = needs.needs_of(parsed())
    by_stage = {each.stage: each for each in wanted}
    assert list(by_stage) == ["images", "first", "codes", "second", "quality"]
    lines = needs.lacking(wanted, [{"CPU": 8.0}])
    assert len(lines) == 4
    assert lines[0].startswith("stage codes: 1 actors of 1 CPUs and 1 GPUs each are needed")
    assert lines[1].startswith("stage second: 12 CPUs are needed"), "of four workers with their read tasks"
    assert lines[2].startswith("stage quality: 18 CPUs are needed")
    assert "lower evaluate.actors, evaluate.*_per_actor" in lines[3]
    assert needs.lacking(wanted, [{"CPU": 20.0, "GPU": 1.0}]) == []


def test_pods_are_those_of_the_largest_stage(project: Path) -> None:
    groups = {group.name: group for group in groups_of(parsed())}
    assert groups["train"].replicas == 4 and groups["train"].gpus == 0
    assert (groups["evaluate"].replicas, groups["evaluate"].gpus) == (2, 1), "the encoder's"
    assert groups["data"].replicas * groups["data"].cpus >= 18
    nodes = [group.resources() for group in groups.values() for _ in range(group.replicas)]
    assert needs.lacking(needs.needs_of(parsed()), nodes) == []


def test_relative_places_need_a_root(project: Path) -> None:
    images = {**PIPELINE["stages"]["images"], "dest": "data/digits"}
    changed = {**PIPELINE, "storage": "runs", "stages": {**PIPELINE["stages"], "images": images}}
    (project / "night" / "pipeline.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    with pytest.raises(ConfigError, match=r"storage=runs; stages.images.dest=data/digits: relative to"):
        read(["run", "night/pipeline.yaml"], SubmitOptions())
    assert read(["run", "night/pipeline.yaml"], SubmitOptions(root="/shared")).title == "night"


def test_code_and_secrets_of_a_stage_are_found(project: Path) -> None:
    own = {**RECIPE, "model": {**RECIPE["model"], "family": "my_family:Mine"}}
    (project / "tiny.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(ConfigError, match=r"runs the module my_family.*--trust"):
        parsed()
    (project / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.raises(ConfigError, match="holds a secret"):
        parsed("second.tracking.tags.api_key=abc")
    mine = {**PIPELINE, "stages": {"own": {"kind": "my_stages:Mine"}}}
    (project / "night" / "pipeline.yaml").write_text(yaml.safe_dump(mine))
    with pytest.raises(ConfigError, match=r"runs the module my_stages.*--trust"):
        parsed()


def test_what_is_for_recipes_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match="--fresh and --take-over are for recipes"):
        parsed("--fresh")
    with pytest.raises(ConfigError, match="there is no stage 'secnd'"):
        parsed("secnd.train.images=3")
