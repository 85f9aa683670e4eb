"""Runs side by side: the table, the page, and a blind study with its votes, from real evaluations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sfumato.evaluation.compare.figures import pareto_front
from sfumato.evaluation.compare.study import questions
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.stage import evaluate
from sfumato.evaluation.subjects.images import open_images

SETTINGS = EvaluateSettings(
    actors=0,
    samples=400,
    feature_options={"classifier": {"seen": 4000, "base": 8, "dim": 16}},
    accept_weak_features=True,
)


def noisy_digits(folder: Path, noise: float) -> Path:
    """400 digits with Gaussian noise of a standard deviation in grey levels, the same digits each time."""
    digits, rng = load_digits(), np.random.default_rng(0)
    for row in range(400):
        pixels = digits.images[row] * 255 / 16 + noise * rng.normal(size=(8, 8))
        place = folder / str(digits.target[row])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(place / f"{row:04d}.png")
    return folder


@pytest.fixture(scope="module")
def project(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three evaluations: two of nearly the same quality and one that is clearly worse."""
    root = tmp_path_factory.mktemp("project")
    for name, noise in (("clean", 2.0), ("alike", 3.0), ("noisy", 60.0)):
        evaluate(
            Evaluation.of_images(
                SETTINGS,
                images=open_images(str(noisy_digits(root / "images" / name, noise))),
                reference=open_images(str(digits_data)),
                out=root / name,
                cache=root / "runs" / ".cache",
            )
        )
    return root


@pytest.fixture
def call(project: Path, monkeypatch: pytest.MonkeyPatch, sfumato_here: Any) -> Any:
    """A command in the project's folder: (status, standard output, standard error)."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("COLUMNS", "200")
    return sfumato_here


def test_the_worse_run_is_told_from_the_best_and_its_equal_is_not(call: Any) -> None:
    status, out, _ = call("compare", "clean", "alike", "noisy", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["runs"] == ["clean", "alike", "noisy"]
    assert found["obstacles"] == []
    for metric in ("fd_classifier", "precision", "class_accuracy"):
        cells = found["metrics"][metric]
        assert sum(cell["best"] for cell in cells.values()) == 1
        assert not cells["noisy"]["best"]
        assert cells["noisy"]["p_uncorrected"] <= 0.02
        assert cells["noisy"]["p_against_best"] >= 5 * cells["noisy"]["p_uncorrected"], "of 12 tests"
        low, high = cells["noisy"]["interval"]
        assert low <= cells["noisy"]["value"] <= high
    assert found["metrics"]["fd_classifier"]["noisy"]["test"].startswith(
        "permutation test on features, paired"
    )
    second = {"clean", "alike"} - {n for n, c in found["metrics"]["precision"].items() if c["best"]}
    assert found["metrics"]["precision"][second.pop()]["p_against_best"] > 0.05
    status, out, _ = call("compare", "clean", "noisy")
    assert "fd_classifier ↓" in out and "precision ↑" in out


def test_the_page_needs_nothing_but_itself_and_says_everything(call: Any, project: Path) -> None:
    status, out, _ = call("compare", "clean", "alike", "noisy", "--out", "page/report.html")
    assert status == 0 and "page/report.html" in out
    page = (project / "page" / "report.html").read_text()
    for heading in (
        "Figures",
        "Quality against the cost",
        "Samples",
        "Nearest training images",
        "recipes differ",
    ):
        assert heading in page
    assert page.count("data:image/png;base64,") == 6, "a grid and the neighbours of each run"
    assert page.count("<svg") >= 4
    addresses = set(re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:|#)([^"')>\s]+)""", page))
    assert not addresses, f"nothing is fetched: {addresses}"
    assert "Image i of every run has the same seed" in page


def test_evaluations_that_do_not_compare_are_said_and_nothing_is_best(
    call: Any, project: Path, digits_data: Path
) -> None:
    evaluate(
        Evaluation.of_images(
            SETTINGS.model_copy(update={"samples": 200}),
            images=open_images(str(project / "images" / "clean")),
            reference=open_images(str(digits_data)),
            out=project / "half",
            cache=project / "runs" / ".cache",
        )
    )
    status, out, err = call("compare", "clean", "half", "--json")
    assert status == 0
    assert "clean has 400 samples and half 200" in json.loads(out)["obstacles"][0]
    assert "do not compare" in err
    assert not any(c["best"] for row in json.loads(out)["metrics"].values() for c in row.values())


def test_a_study_is_blind_and_its_votes_become_win_rates(call: Any, project: Path) -> None:
    status, out, _ = call("compare", "clean", "noisy", "--study", "study", "--images", "10", "--json")
    assert status == 0 and json.loads(out)["questions"] == 10
    page = (project / "study" / "study.html").read_text()
    assert "clean" not in page and "noisy" not in page.replace("noisy_", ""), "the page names no run"
    key = json.loads((project / "study" / "key.json").read_text())
    votes = [
        {"id": q["id"], "choice": "left" if q["left"] == "clean" else "right"} for q in key["questions"][:8]
    ] + [{"id": q["id"], "choice": "left" if q["left"] == "noisy" else "right"} for q in key["questions"][8:]]
    (project / "votes.json").write_text(json.dumps({"study": key["study"], "votes": votes}))
    status, out, _ = call("compare", "--votes", "votes.json", "--study", "study", "--json")
    counted = json.loads(out)
    assert (status, counted["votes"]) == (0, 10)
    assert counted["win_rates"][0]["first"] == "clean" and counted["win_rates"][0]["rate"] == 0.8
    assert counted["strengths"][0]["log_strength"] * 2 == pytest.approx(np.log(4))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("nothing", "votes.json is not a file of votes"),
        ('{"study": "other", "votes": []}', "votes of another study (other)"),
        ('{"study": "%s", "votes": []}', "no votes in it"),
        (
            '{"study": "%s", "votes": [{"id": 99, "choice": "left"}]}',
            "an id of the study with left, right or same",
        ),
        (
            '{"study": "%s", "votes": [{"id": 0, "choice": "both"}]}',
            "an id of the study with left, right or same",
        ),
    ],
)
def test_votes_that_are_none_are_refused(call: Any, project: Path, content: str, line: str) -> None:
    if not (project / "asked").exists():
        assert call("compare", "clean", "noisy", "--study", "asked", "--images", "2")[0] == 0
    study = json.loads((project / "asked" / "key.json").read_text())["study"]
    (project / "votes.json").write_text(content.replace("%s", study))
    status, _, err = call("compare", "--votes", "votes.json", "--study", "asked")
    assert status == 2
    assert line in err and err.count("\n") == 1


def test_bad_requests_get_one_line(call: Any) -> None:
    for arguments, line in (
        (("clean",), "a comparison needs two runs or more, got 1"),
        (("clean", "nowhere"), "no run 'nowhere'"),
        (("clean", "--votes", "votes.json"), "takes no runs"),
    ):
        status, _, err = call("compare", *arguments)
        assert status == 2 and line in err and err.count("error:") == 1


def test_questions_are_balanced_and_follow_the_seed() -> None:
    asked = questions(3, 40, seed=1)
    assert len(asked) == 40 * 3 == len({(q.image, frozenset((q.left, q.right))) for q in asked})
    first_left = sum(q.left < q.right for q in asked)
    assert 40 <= first_left <= 80, "neither run is always on the left"
    assert asked == questions(3, 40, seed=1) != questions(3, 40, seed=2)


def test_the_pareto_front_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    points = [(float(c), float(q)) for c, q in rng.integers(0, 12, size=(40, 2))]
    front = {points[i] for i in pareto_front(points, higher_is_better=False)}
    beaten = {p for p in points if any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in points)}
    assert front == set(points) - beaten
