"""A sweep's journal, what it says of the trials, and the pictures of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sfumato.tuning import importance, plots, table
from sfumato.tuning.journal import Journal, Trial, best_of, common_images, stopped_share
from sfumato.tuning.parameter import Parameter


def told(path: Path) -> Journal:
    journal = Journal(path)
    for number, (status, curve) in enumerate(
        [
            ("finished", [(10, 5.0), (20, 4.0)]),
            ("stopped", [(10, 1.0)]),
            ("finished", [(10, 6.0), (20, 3.0)]),
            ("failed", []),
            ("finished", [(10, 6.0), (20, math.nan)]),
        ]
    ):
        journal.add("trial", number, values={"train.batch": 8 * number})
        journal.add("start", number)
        for images, value in curve:
            journal.add("report", number, images=images, value=value)
        journal.add("end", number, status=status, reason="")
    return journal


def test_a_journal_read_again_tells_the_same(tmp_path: Path) -> None:
    journal = told(tmp_path / "journal.jsonl")
    journal.add("handed", 2, source=0, values={"train.batch": 3})
    journal.add("retry", 3, reason="lost its workers")
    journal.add("time", seconds=12.5)
    again = Journal(tmp_path / "journal.jsonl")
    assert str(again.in_order()) == str(journal.in_order())  # text: the journal has a NaN
    assert again.seconds == 12.5
    assert again.trials[2].values == {"train.batch": 3} and again.trials[2].parents == [0]
    assert again.trials[3].retries == 1
    assert again.total_images() == 20 + 10 + 20 + 0 + 20


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_a_line_that_a_killed_driver_cut_off_is_passed_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    told(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = Journal(path)
    assert journal.trials[4].status == "running" or cut == 1
    journal.add("end", 4, status="finished")
    assert Journal(path).trials[4].status == "finished"


def test_the_best_ran_to_its_end_and_is_a_number(tmp_path: Path) -> None:
    trials = told(tmp_path / "journal.jsonl").in_order()
    best = best_of(trials, "min")
    assert best is trials[2]  # trial 1 was lower, and stopped at half the images; trial 4 is not a number
    assert best_of(trials, "max") is trials[0]
    assert best_of([trials[1], trials[3]], "min") is trials[1]
    assert best_of([trials[3]], "min") is None
    assert common_images(trials) == 10
    assert stopped_share(trials) == pytest.approx(1 / 5)


def forest_of(count: int) -> tuple[list[Trial], dict[str, Parameter]]:
    """Trials whose metric is the logarithm of one field; another field and a choice do nothing."""
    rng = np.random.default_rng(0)
    space = {
        "lr": Parameter(loguniform=(1e-5, 1e-1)),
        "width": Parameter(choice=([8], [16])),
        "noise": Parameter(uniform=(0.0, 1.0)),
    }
    trials = []
    for number in range(count):
        trial = Trial(
            number, {name: parameter.draw(rng) for name, parameter in space.items()}, status="finished"
        )
        trial.reports = [_report(10, math.log(trial.values["lr"]))]
        trials.append(trial)
    return trials, space


def _report(images: int, value: float):  # type: ignore[no-untyped-def]
    from sfumato.tuning.journal import Report

    return Report(images, value)


def test_the_field_that_decides_is_the_important_one() -> None:
    trials, space = forest_of(24)
    shares = importance.importances(trials, space, {})
    assert next(iter(shares)) == "lr" and shares["lr"] > 0.85
    assert sum(shares.values()) == pytest.approx(1.0)
    assert importance.importances(trials[: importance.FEWEST - 1], space, {}) == {}


def test_pictures_are_drawn_and_left_out_where_there_is_nothing_to_draw(tmp_path: Path) -> None:
    trials, space = forest_of(6)
    trials[2].status = "stopped"
    trials[5].reports = [_report(10, math.inf)]
    options = {"metric": "train/d/loss", "mode": "min", "best": 0}
    assert plots.parallel_coordinates(tmp_path / "p.png", trials, space, {}, **options)  # type: ignore[arg-type]
    assert plots.importance(tmp_path / "i.png", {"lr": 0.8, "width": 0.2}, metric="m", trials=6)
    for name in ("p.png", "i.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(1 << 20)) > 8
    assert not plots.parallel_coordinates(tmp_path / "q.png", trials[:1], space, {}, **options)  # type: ignore[arg-type]
    assert not plots.importance(tmp_path / "q.png", {}, metric="m", trials=0)
    assert not (tmp_path / "q.png").exists()


def test_the_table_shows_every_trial_and_marks_the_best(tmp_path: Path) -> None:
    trials = told(tmp_path / "journal.jsonl").in_order()
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    console.print(table.table(trials, ["train.batch"], title="t", metric="train/d/loss", mode="min", now={}))
    text = console.export_text()
    assert "2*" in text and "stopped" in text and "failed" in text and "24" in text
    assert json.loads(table.shown([1, 2])) == [1, 2] and table.shown(0.00012346) == "0.0001235"


def test_fields_are_as_short_as_tells_them_apart() -> None:
    names = ["model.generator.lr.peak", "model.critic.lr.peak", "train.batch"]
    assert table.short(names) == ["generator.lr.peak", "critic.lr.peak", "batch"]
