"""The commands that are sent, with the options that they have on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml

from sfumato.cli import app
from sfumato.errors import ConfigError
from sfumato.families.flow import Config
from sfumato.runtime.jobs import needs, parsing
from sfumato.runtime.jobs.groups import groups_of

RECIPE = {
    "name": "tiny",
    "data": {"path": "/data", "streams": 64},
    "model": Config.tiny().model_dump(mode="json"),
    "train": {"images": 512, "batch": 128},
    "parallel": {"workers": 2},
    "storage": "/runs",
    "tracking": {"uri": "http://mlflow:5000"},
    "tune": {
        "metric": "train/likelihood/loss",
        "trials": 6,
        "concurrency": 3,
        "space": {"model.optimizer.lr.peak": {"loguniform": [1e-4, 1e-2]}},
    },
}


@pytest.mark.parametrize("name", parsing.COMMANDS)
def test_options_are_those_of_the_command(name: str) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    known = {
        option: not param.is_flag
        for param in command.params
        if param.param_type_name == "option"
        for option in param.opts
    }
    for option, takes_a_value in parsing.COMMANDS[name].items():
        assert known.get(option) == takes_a_value, option


def test_a_sweep_is_resumed_by_the_same_command(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    command = parsing.parse(["tune", str(file), "tune.trials=4"], trust=False)
    assert command.arguments == ("tune.trials=4", "--resume-if-any"), "a job that restarts says the same"
    assert command.title == "tiny-sweep"
    train = parsing.parse(["train", str(file)], trust=False)
    assert command.run != train.run
    # One trial has to fit; there are pods for as many as run side by side.
    assert needs.needs_of(command) == needs.needs_of(train)
    assert [3 * group.replicas for group in groups_of(train)] == [g.replicas for g in groups_of(command)]
    fresh = parsing.parse(["tune", str(file), "--fresh"], trust=False)
    assert fresh.arguments == ("--fresh",) and fresh.fresh


def test_commands_on_places_of_the_cluster() -> None:
    words = ["precompute", "/runs/vae", "/data", "--actors", "4", "--gpus=0.5", "--dtype", "bfloat16"]
    command = parsing.parse(words, trust=False)
    assert command.file is None and not command.relative
    assert command.arguments == ("/runs/vae", "/data", *words[3:5], "--gpus", "0.5", *words[6:])
    (group, data) = groups_of(command)
    assert (group.replicas, group.gpus, data.name) == (4, 1, "data")
    packed = parsing.parse(["pack", "s3://pictures", "/data", "channels=3", "--overwrite"], trust=False)
    assert packed.arguments == ("s3://pictures", "/data", "channels=3", "--overwrite")
    edited = parsing.parse(
        ["edit", "/runs/tiny-1", "/pictures", "--out=/edits", "--label", "0", "--label", "1"], trust=False
    )
    assert edited.arguments[2:] == ("--out", "/edits", *("--label", "0", "--label", "1"), "--actors", "1")
    words = ["augment", "/data", "/more", "--by", "/runs/tiny-1", "--class-balance", "--actors", "3"]
    augmented = parsing.parse([*words, "--gpus-per-actor", "1"], trust=False)
    assert augmented.arguments == (*words[1:], "--gpus-per-actor", "1")
    assert [(group.replicas, group.gpus) for group in groups_of(augmented)] == [(3, 1), (1, 0)]
    measured = parsing.parse(["evaluate", "/runs/tiny-1", "--samples", "500"], trust=False)
    assert str(measured) == "evaluate /runs/tiny-1 --samples 500"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["edit", "/runs/tiny-1", "/pictures"], "needs RUN [IMAGES] --out FOLDER"),
        (["augment", "/data", "/more"], "needs DATA DEST --by RUN"),
        (["edit", "/r", "/p", "--out", "/o", "--set", "token=abc"], "token holds a secret"),
        (["edit", "/r", "/p", "--out", "/o", "--actors", "two"], "numbers"),
        (["sample", "/r"], "begins with one of"),
    ],
)
def test_what_is_wrong_with_them(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parsing.parse(words, trust=False)


def test_places_of_edit_and_augment_that_need_a_root() -> None:
    edited = parsing.parse(["edit", "digits", "/p", "--out", "edits", "--mask", "/m.png"], trust=False)
    assert edited.relative == ("place=digits", "--out=edits")
    augmented = parsing.parse(["augment", "data", "/more", "--by", "digits", "--to", "9"], trust=False)
    assert augmented.relative == ("place=data", "--by=digits")
