"""Settings: what is chosen, and what each mistake is answered with."""

from __future__ import annotations

import types

import pytest
from pydantic import ValidationError

from sfumato.core.batch import DataSpec
from sfumato.core.finding import Members
from sfumato.errors import ConfigError
from sfumato.evaluation.config import EvaluateSettings

DIGITS = DataSpec(1, 8, 8, tuple("0123456789"))
PICTURES = DataSpec(3, 64, 64)


def chosen(settings: EvaluateSettings, data: DataSpec, conditional: bool = True) -> list[str]:
    return [name for _, _, name in settings.select(data, conditional=conditional).metrics]


def test_auto_takes_all_that_the_data_and_the_model_permit() -> None:
    auto = EvaluateSettings()
    assert set(chosen(auto, DIGITS)) == {"fd_classifier", "precision", "recall", "class_accuracy"}
    assert set(chosen(auto, DIGITS, conditional=False)) == {"fd_classifier", "precision", "recall"}
    assert set(chosen(auto, PICTURES)) == {"fd_efficientnet_lite0", "precision", "recall"}


@pytest.mark.parametrize(
    ("data", "features"),
    [
        (DIGITS, "classifier"),
        (DataSpec(1, 64, 64, ("a", "b")), "classifier"),
        (DataSpec(1, 128, 64, ("a", "b")), "efficientnet_lite0"),
        (DataSpec(1, 28, 28), "efficientnet_lite0"),
        (DataSpec(3, 32, 32, ("a", "b")), "efficientnet_lite0"),
        (DataSpec(3, 256, 256), "efficientnet_lite0"),
        (DataSpec(4, 32, 32, ("a", "b")), "classifier"),
    ],
)
def test_auto_features_follow_the_data(data: DataSpec, features: str) -> None:
    (kind,) = EvaluateSettings().select(data, conditional=True).features
    assert kind.name == features
    (kind,) = EvaluateSettings(auto_features="classifier").select(DIGITS, conditional=True).features
    assert kind.name == "classifier", "a run's recipe.yaml has recorded it"


def test_what_auto_stood_for_is_no_other_evaluation() -> None:
    recorded = EvaluateSettings(auto_features="efficientnet_lite0")
    assert recorded.identity() == EvaluateSettings().identity()


def test_names_are_suffixed_when_several_features_give_the_same_metric() -> None:
    settings = EvaluateSettings(features=("classifier", "efficientnet_lite0"))
    assert set(chosen(settings, DIGITS)) == {
        "fd_classifier",
        "fd_efficientnet_lite0",
        "precision_classifier",
        "precision_efficientnet_lite0",
        "recall_classifier",
        "recall_efficientnet_lite0",
        "class_accuracy",
    }


def test_one_name_does_as_well_as_a_list() -> None:
    settings = EvaluateSettings(features="classifier", metrics="recall")
    assert chosen(settings, DIGITS) == ["recall"]
    assert settings.problems(DIGITS) == []


@pytest.mark.parametrize(
    ("fields", "data", "line"),
    [
        ({"metrics": ("presicion",)}, DIGITS, "evaluate.metrics: no 'presicion'; did you mean 'precision'?"),
        ({"features": "clasifier"}, DIGITS, "evaluate.features: no 'clasifier'; did you mean 'classifier'?"),
        ({"feature_options": {"x": {}}}, DIGITS, "evaluate.feature_options: no 'x'; known: classifier"),
        ({"metrics": ()}, DIGITS, "evaluate.metrics: needs one name or more, each once, got []"),
        ({"features": ("classifier", "classifier")}, DIGITS, "each once, got ['classifier', 'classifier']"),
        ({"metrics": "class_accuracy"}, PICTURES, "class_accuracy needs 2 or more classes, this data has 0"),
        (
            {"metrics": "class_accuracy", "features": "efficientnet_lite0"},
            DIGITS,
            "metric class_accuracy needs features that classify (classifier), got efficientnet_lite0",
        ),
        ({"samples": 5, "k": 7}, DIGITS, "evaluate.samples=5 is too few for precision with evaluate.k=7: 8"),
        ({"features": "classifier"}, PICTURES, "features classifier needs data with 2 or more classes"),
        (
            {"feature_options": {"classifier": {"seen": 0}}},
            DIGITS,
            "evaluate.feature_options.classifier.seen: must be greater than 0",
        ),
        (
            {"feature_options": {"classifier": {"steps": 3}}},
            DIGITS,
            "evaluate.feature_options.classifier.steps: unknown key",
        ),
        ({"features": "efficientnet_lite0"}, DataSpec(4, 32, 32), "needs 1 or 3 channels, this data has 4"),
    ],
)
def test_each_mistake_gets_its_line(fields: dict[str, object], data: DataSpec, line: str) -> None:
    settings = EvaluateSettings.model_validate(fields)
    assert any(line in problem for problem in settings.problems(data)), settings.problems(data)
    assert all("\n" not in problem for problem in settings.problems(data))
    with pytest.raises(ConfigError):
        settings.select(data, conditional=True)


def test_class_accuracy_of_an_unconditional_model_is_refused_when_asked_for_by_name() -> None:
    with pytest.raises(ConfigError, match="class-conditional model, and this one takes no labels"):
        EvaluateSettings(metrics="class_accuracy").select(DIGITS, conditional=False)


@pytest.mark.parametrize(
    "fields", [{"samples": 1}, {"k": 0}, {"actors": -1}, {"cpus_per_actor": 0}, {"sample": 3}, {"seed": -1}]
)
def test_values_out_of_range_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EvaluateSettings.model_validate(fields)


def test_settings_survive_a_journey_through_json() -> None:
    settings = EvaluateSettings(features=("classifier",), sampling={"steps": 7}, metrics=("fd",))
    assert EvaluateSettings.model_validate(settings.model_dump(mode="json")) == settings


def test_two_members_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.evaluation import metrics
    from sfumato.evaluation.metrics import accuracy, frechet

    monkeypatch.setattr(accuracy, "METRICS", frechet.METRICS)
    assert isinstance(metrics, types.ModuleType)
    with pytest.raises(ValueError, match="two members called 'fd'"):
        Members("sfumato.evaluation.metrics", "METRICS").all()
