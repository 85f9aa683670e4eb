"""Which evaluation is the best, and when training has to end: decisions without a cluster."""

from __future__ import annotations

import pytest

from sfumato.core.batch import DataSpec
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.decisions.early_stopping import (
    BestSettings,
    EarlyStopSettings,
    Point,
    best_of,
    should_stop,
)


def points(*values: float, higher: bool = False) -> list[Point]:
    return [Point(100 * (i + 1), {"m": value}, {"m": higher}) for i, value in enumerate(values)]


def test_the_best_follows_the_metric_or_the_mode_and_the_earliest_wins_a_draw() -> None:
    lower = BestSettings(metric="m")
    assert best_of(points(3, 1, 2, 1), lower).images == 200  # type: ignore[union-attr]
    assert best_of(points(3, 1, 2, 1, higher=True), lower).images == 100  # type: ignore[union-attr]
    assert best_of(points(3, 1, 4), BestSettings(metric="m", mode="max")).images == 300  # type: ignore[union-attr]
    assert best_of(points(3, 1), BestSettings(metric="other")) is None
    assert best_of(list(reversed(points(1, 1, 1))), lower).images == 100, "in the order of images"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "patience", "min_change", "stops"),
    [
        ([3, 2, 1], 1, 0.0, False),
        ([3, 2, 2], 1, 0.0, True),
        ([3, 2, 2], 2, 0.0, False),
        ([3, 2, 2.5, 2.1], 2, 0.0, True),
        ([3, 2.95, 2.9], 2, 0.2, True),
        ([3, 2.95, 2.9, 2.7], 2, 0.2, False),
        ([], 1, 0.0, False),
    ],
)
def test_training_ends_after_so_many_evaluations_without_a_gain(
    values: list[float], patience: int, min_change: float, stops: bool
) -> None:
    settings = EarlyStopSettings(metric="m", patience=patience, min_change=min_change)
    assert should_stop(points(*values), settings) is stops


def test_decisions_without_evaluations_or_on_unknown_figures_are_refused() -> None:
    digits = DataSpec(1, 8, 8, tuple("0123456789"))
    found = EvaluateSettings(best={"metric": "fd_clasifier"}).problems(digits)
    assert any("evaluate.best needs evaluations in training: set evaluate.every" in line for line in found)
    assert any("no 'fd_clasifier'; did you mean 'fd_classifier'" in line for line in found)
    assert EvaluateSettings(every=100, best={"metric": "recall"}).problems(digits) == []
