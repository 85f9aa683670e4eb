"""With --json a command writes one JSON value on standard output, and nothing else.

The tables name every command that takes the option: those that are called here, and the tests of the others,
which read all of their standard output as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from repository import ROOT
from tiny_recipe import write_tiny_recipe

from sfumato import cli

Here = Callable[..., tuple[int, str, str]]

LIGHT = {
    "pack": ("digits", "other"),
    "data index": ("indexed", "--overwrite"),
    "data inspect": ("data/digits", "--measure", "10"),
    "data verify": ("data/digits", "--no-decode"),
    "data subset": ("data/digits", "part"),
    "provenance keys": ("keys",),
    "recipe check": ("tiny.yaml",),
    "plan": ("tiny.yaml", "--image", "1x8x8", "--classes", "10"),
    "doctor": (),
}
"""Calls that need no cluster, in the order in which they run."""
ON_RAY = {
    "train": ("tiny.yaml",),
    "evaluate": ("tiny",),
    "run": ("tiny.yaml",),
    "sample": ("tiny", "--num", "2", "--out", "drawn"),
    "export": ("tiny", "exported"),
    "card": ("tiny",),
    "ema": ("tiny", "--sigma-rel", "0.1", "--out", "averaged"),
    "compare": ("tiny", "tiny"),
    "tune": ("sweep.yaml",),
}
"""Calls that train and measure, in the order in which they run."""
ELSEWHERE = {
    "submit": "tests/integration/test_jobs.py",
    "jobs list": "tests/integration/test_jobs.py",
    "jobs attach": "tests/integration/test_jobs.py",
    "edit": "tests/unit/editing/test_edit.py",
    "augment": "tests/integration/test_augment.py",
    "precompute": "tests/integration/test_precompute.py",
    "membership": "tests/numerics/test_membership.py",
    "data trace": "tests/unit/data/packing/test_opt_out.py",
    "detector train": "tests/unit/evaluation/audits/test_detector.py",
    "detector score": "tests/unit/evaluation/audits/test_detector.py",
    "provenance sign": "tests/unit/provenance/manifests/test_models.py",
    "provenance show": "tests/unit/provenance/test_manifests.py",
    "provenance detect": "tests/unit/provenance/test_noises.py",
}
"""Commands whose whole output another test reads as JSON."""


def commands(group: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, set[str]]]:
    """Every command below the group, with the options it takes."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*name, word))
        else:
            yield " ".join((*name, word)), {option for p in command.params for option in p.opts}


def test_every_command_that_takes_the_option_is_in_a_table() -> None:
    taking = {name for name, options in commands(typer.main.get_command(cli.app)) if "--json" in options}
    assert taking == {*LIGHT, *ON_RAY, *ELSEWHERE}
    for file in ELSEWHERE.values():
        assert '"--json"' in (ROOT / file).read_text()


def alone(here: Here, name: str, words: tuple[str, ...]) -> None:
    status, out, err = here(*name.split(), *words, "--json")
    assert status == 0 or name == "doctor", err  # which fails where the machine lacks something
    assert out.count("\n") == 1 and isinstance(json.loads(out), dict | list), (name, out)


def test_commands_without_a_cluster(
    sfumato_here: Here, tmp_path: Path, digits_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_recipe(tmp_path, "data/digits", train={"images": 256})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits_data)
    (tmp_path / "indexed").mkdir()
    for shard in digits_data.glob("*.tar"):
        (tmp_path / "indexed" / shard.name).write_bytes(shard.read_bytes())
    for name, words in LIGHT.items():
        alone(sfumato_here, name, words)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
@pytest.mark.timeout(1200)
def test_commands_that_train_and_measure(
    sfumato_here: Here, tmp_path: Path, digits_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_recipe(
        tmp_path,
        digits_data,
        train={"images": 256, "snapshots": {"every": 128}},
        evaluate={"samples": 20, "actors": 0, "preview": 0, "features": ["thumbnail"], "metrics": ["fd"]},
        data={"read_tasks": 0},
    )
    space = {"model.optimizer.lr.peak": {"choice": [3e-3]}}
    tune = {"metric": "train/likelihood/loss", "search": {"kind": "grid"}, "baseline": False, "space": space}
    (tmp_path / "sweep.yaml").write_text(
        json.dumps({"base": "tiny.yaml", "name": "searched", "tune": tune, "evaluate": {"every": None}})
    )
    for name, words in ON_RAY.items():
        alone(sfumato_here, name, words)
