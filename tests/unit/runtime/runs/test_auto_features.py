"""Which features `auto` stands for in a run, also in one that an earlier version began."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sfumato.core.batch import DataSpec
from sfumato.evaluation.config import EvaluateSettings
from sfumato.runtime.runs.earlier import measured_alike
from sfumato.runtime.runs.run_folder import RunFolder

PHOTOS = DataSpec(3, 32, 32, ("cat", "dog"))


def folder(tmp_path: Path, **evaluate: object) -> RunFolder:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"evaluate": {"features": "auto", **evaluate}}))
    return RunFolder(tmp_path)


def meant(settings: EvaluateSettings, run: RunFolder | None, data: DataSpec = PHOTOS) -> str:
    found = measured_alike(settings, data, run)
    (kind,) = found.select(data, conditional=True).features
    assert found.identity() == settings.identity(), "what is finished stays found"
    return kind.name


def test_a_new_run_takes_what_auto_stands_for_now(tmp_path: Path) -> None:
    assert meant(EvaluateSettings(), None) == "efficientnet_lite0"
    assert meant(EvaluateSettings(), RunFolder(tmp_path / "none")) == "efficientnet_lite0"


def test_a_run_of_before_keeps_what_it_stood_for(tmp_path: Path) -> None:
    old = folder(tmp_path)
    assert meant(EvaluateSettings(), old) == "classifier"
    assert meant(EvaluateSettings(), old, DataSpec(3, 32, 32)) == "efficientnet_lite0", "it had no classes"
    by_figure = EvaluateSettings(every=100, best={"metric": "fd_classifier"})  # type: ignore[arg-type]
    assert by_figure.problems(PHOTOS), "a new run has no such figure"
    assert measured_alike(by_figure, PHOTOS, old).problems(PHOTOS) == []


@pytest.mark.parametrize("recorded", ["classifier", "efficientnet_lite0"])
def test_what_a_run_has_recorded_holds(tmp_path: Path, recorded: str) -> None:
    assert meant(EvaluateSettings(), folder(tmp_path, auto_features=recorded)) == recorded


def test_what_is_asked_for_by_name_holds(tmp_path: Path) -> None:
    assert meant(EvaluateSettings(features="efficientnet_lite0"), folder(tmp_path)) == "efficientnet_lite0"
