"""Which figures of an evaluation are taken for a mode collapse."""

from __future__ import annotations

import pytest

from sfumato.core.batch import DataSpec
from sfumato.evaluation.collapse_limits import CollapseLimits, signs
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.metrics import all_metrics

DIGITS = DataSpec(1, 8, 8, tuple("0123456789"))
GOOD = {"classes_covered": 1.0, "class_kl": 0.1, "pair_distance": 0.9, "recall": 0.6, "fd": 900.0}


@pytest.mark.parametrize(
    ("figure", "value", "said"),
    [
        ("classes_covered", 0.25, "classes_covered 0.25, under 0.9"),
        ("class_kl", 1.25, "class_kl 1.25, over 0.5"),
        ("pair_distance", 0.01, "pair_distance 0.01, under 0.5"),
        ("pair_distance_classifier", 0.01, "pair_distance_classifier 0.01, under 0.5"),
        ("recall", 0.0, "recall 0, under 0.05"),
    ],
)
def test_each_figure_has_a_limit(figure: str, value: float, said: str) -> None:
    assert signs(GOOD, CollapseLimits()) == []
    assert signs({**GOOD, figure: value}, CollapseLimits()) == [said]
    field = figure.removesuffix("_classifier")
    assert signs({**GOOD, figure: value}, CollapseLimits(**{field: None})) == []


def test_the_limits_are_of_metrics_and_look_the_right_way() -> None:
    metrics = all_metrics()
    for name in CollapseLimits().watched:
        limit = getattr(CollapseLimits(), name)
        better = limit + 0.01 if metrics[name].higher_is_better else limit - 0.01
        assert signs({name: better}, CollapseLimits()) == []
        assert signs({name: 2 * limit - better}, CollapseLimits())


def test_limits_without_figures_or_evaluations_are_refused() -> None:
    def problems(**fields: object) -> list[str]:
        return [line for line in EvaluateSettings(**fields).problems(DIGITS) if "collapse" in line]  # type: ignore[arg-type]

    limits = {"collapse": {}}
    assert problems(**limits, every=1_000) == [], "recall is among the figures of auto"
    assert problems(**limits, every=1_000, metrics=["fd", "class_kl"]) == []
    assert problems(**limits) == [
        "evaluate.collapse needs evaluations in training: set evaluate.every to images"
    ]
    (line,) = problems(**limits, every=1_000, metrics=["fd"])
    assert line.startswith(
        "evaluate.collapse watches classes_covered, pair_distance, recall, class_kl: add one"
    )
