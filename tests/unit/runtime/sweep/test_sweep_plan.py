"""Which folder a sweep has: settled by what is searched, and kept by sweeps of earlier versions."""

from __future__ import annotations

from pathlib import Path

from repository import ROOT

from sfumato import recipe as recipes
from sfumato.runtime.sweep.sweep_plan import sweep_folder

SWEEP = ROOT / "pipelines" / "digits" / "sweep.yaml"
OF_0_1 = "digits-sweep-sweep-4be740fd"
"""What version 0.1 called the sweep of that file."""


def _name(root: Path, *overrides: str) -> str:
    content = recipes.read(SWEEP, overrides)
    return sweep_folder(recipes.parse(content), content, root).name


def test_a_sweep_of_version_0_1_keeps_its_folder(tmp_path: Path) -> None:
    today = _name(tmp_path)
    assert today != OF_0_1
    (tmp_path / recipes.load(SWEEP).storage / OF_0_1).mkdir(parents=True)
    assert _name(tmp_path) == OF_0_1


def test_what_is_searched_makes_another_sweep_and_how_much_does_not(tmp_path: Path) -> None:
    first = _name(tmp_path)
    for same in ("tune.trials=3", "tune.concurrency=1", "tune.retries=5", "tune.budget.images=1000"):
        assert _name(tmp_path, same) == first, same
    assert _name(tmp_path, "tune.seed=7") != first
    assert _name(tmp_path, "tune.seed=0") == first  # its default, written out
