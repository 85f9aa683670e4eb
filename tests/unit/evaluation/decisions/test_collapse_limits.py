"""Which figures of an evaluation are taken for a mode collapse."""

from __future__ import annotations

import pytest

from sfumato.core.batch import DataSpec
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.decisions.collapse_limits import CollapseLimits, signs
from sfumato.evaluation.decisions.ending import collapsed, deciding, may_end, reason_to_end
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
        "evaluate.collapse watches classes_covered, pair_distance, recall, class_kl, "
        "discriminator_overfitting: add one"
    )


def test_what_acts_on_collapse_needs_limits_and_a_best_model() -> None:
    def problems(**fields: object) -> list[str]:
        return [line for line in EvaluateSettings(**fields).problems(DIGITS) if "collapse" in line]  # type: ignore[arg-type]

    assert problems(on_collapse="stop") == ["evaluate.on_collapse needs limits: set evaluate.collapse={}"]
    acting = {"collapse": {}, "every": 1_000, "on_collapse": "restore_best"}
    (line,) = problems(**acting)
    assert "set evaluate.best" in line
    assert problems(**acting, best={"metric": "recall_classifier"}) == []


@pytest.mark.parametrize(
    ("recalls", "fields", "ends"),
    [
        ([0.0, 0.0, 0.6], {}, True),
        ([0.0, 0.6, 0.0, 0.6], {}, False),  # never twice in a row
        ([0.0, 0.6, 0.0], {"patience": 1}, True),
        ([0.0, 0.0, 0.6, 0.0], {"start_images": 300}, False),  # untrained
        ([0.0, 0.0, 0.6, 0.0, 0.0], {"start_images": 300}, True),
        ([0.0, 0.0], {"recall": None}, False),
    ],
)
def test_training_ends_after_collapsed_evaluations_in_a_row(
    recalls: list[float], fields: dict[str, object], ends: bool
) -> None:
    figures = {100 * (at + 1): {"recall": value} for at, value in enumerate(recalls)}
    settings = EvaluateSettings(collapse=CollapseLimits(**fields), on_collapse="stop")  # type: ignore[arg-type]
    assert collapsed(figures, settings) == (["recall 0, under 0.05"] if ends else [])
    reason = reason_to_end([], figures, settings)
    assert reason == ("mode collapse (recall 0, under 0.05)" if ends else None)
    assert may_end(settings)


def test_a_warning_ends_nothing_and_records_as_before() -> None:
    settings = EvaluateSettings(collapse=CollapseLimits(patience=1))
    assert not may_end(settings)
    assert collapsed({100: {"recall": 0.0}}, settings) == []
    early = EvaluateSettings(early_stop={"metric": "fd_classifier"})  # type: ignore[arg-type]
    assert deciding(early) == early.early_stop.model_dump(mode="json")  # type: ignore[union-attr]
