"""`sfumato run --seeds`: a run for each seed, skipped where finished; their figures as one entry of
`compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from scipy import stats
from tiny_evaluation import CLASSIFIER
from tiny_recipe import tiny_recipe


@pytest.fixture(scope="module")
def project(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of one step, measured in this process."""
    folder = tmp_path_factory.mktemp("seeds")
    recipe = tiny_recipe(
        digits_data,
        train={"images": 128},
        data={"read_tasks": 0},
        tracking={"compare": True},
        evaluate={"samples": 60, "actors": 0, "preview": 4, "feature_options": CLASSIFIER},
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.mark.usefixtures("ray_local")
def test_seeds_are_trained_once_and_compared_as_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, sfumato_here: Any
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("COLUMNS", "300")
    status, out, err = sfumato_here("run", "tiny.yaml", "seed=5", "--seeds", "2")
    assert status == 0, err
    assert err.count("there is no other run yet that was measured alike") == 1, "of the first"
    assert "compare   2 runs, in MLflow: run `comparison` of sfumato" in err
    assert "tiny: mean ± standard deviation of 2 seeds" in out and "seed 5" in out and "seed 6" in out
    assert len(list((project / "runs").glob("tiny-*/run.json"))) == 2

    status, out, err = sfumato_here("run", "tiny.yaml", "seed=5", "--seeds", "2", "--json")
    assert status == 0 and err.count("train: 128 images, done before") == 2
    found = json.loads(out)
    assert found["seeds"] == [5, 6]
    values = [run["evaluate"]["metrics"]["fd_classifier"] for run in found["runs"]]
    figure = found["metrics"]["fd_classifier"]
    assert figure["values"] == values and values[0] != values[1]
    assert figure["value"] == pytest.approx(np.mean(values))
    assert figure["spread"] == pytest.approx(np.std(values, ddof=1))
    reach = stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / 2**0.5
    assert (figure["low"], figure["high"]) == pytest.approx(
        (np.mean(values) - reach, np.mean(values) + reach)
    )

    names = [run["run"] for run in found["runs"]]
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (kept,) = client.search_runs(["1"], "tags.`sfumato.kind` = 'comparison'")
    assert kept.info.status == "FINISHED" and kept.data.tags["sfumato.runs"] == ", ".join(reversed(names))
    shown = Path(client.download_artifacts(kept.info.run_id, "comparison.html")).read_text()
    assert "tiny (2 seeds)" in shown and "data:image/png;base64," in shown
    status, out, err = sfumato_here("compare", *names, "--json")
    assert status == 0 and "differ in their seed alone: --group-seeds" in err
    assert list(json.loads(out)["entries"]) == names
    status, out, err = sfumato_here("compare", *names, "--group-seeds", "--out", "page.html", "--json")
    compared = json.loads(out)
    assert status == 0 and compared["entries"] == {"tiny (2 seeds)": names}
    assert compared["metrics"]["fd_classifier"]["tiny (2 seeds)"]["spread"] == figure["spread"]
    page = (project / "page.html").read_text()
    assert "tiny (2 seeds)" in page and f"± {figure['spread']:.2g}" in page


def test_what_cannot_be_repeated_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, sfumato_here: Any
) -> None:
    monkeypatch.chdir(project)
    (project / "pipeline.yaml").write_text("name: p\nstages: {a: {kind: pack, source: digits, path: d}}\n")
    for arguments, line in (
        (("tiny.yaml", "--seeds", "0"), "greater than or equal to 1"),
        (("pipeline.yaml", "--seeds", "2"), "pipeline.yaml is a pipeline; --seeds is for recipes"),
    ):
        status, _, err = sfumato_here("run", *arguments)
        assert status == 2 and line in err and err.count("error:") == 1
