"""The search space: what is drawn, where conditions apply, what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from sfumato.tuning import fields, space
from sfumato.tuning.config import TuneSettings
from sfumato.tuning.parameter import Parameter

DRAWS = 2_000
SIGNIFICANT = 1e-3


def draws(parameter: Parameter) -> list[object]:
    rng = np.random.default_rng(1)
    return [parameter.draw(rng) for _ in range(DRAWS)]


@pytest.mark.parametrize(
    ("parameter", "reference"),
    [
        (Parameter(uniform=(-2.0, 3.0)), stats.uniform(-2, 5)),
        (Parameter(loguniform=(1e-4, 1e-1)), stats.loguniform(1e-4, 1e-1)),
    ],
)
def test_ranges_are_distributed_as_they_say(parameter: Parameter, reference: object) -> None:
    assert stats.kstest(draws(parameter), reference.cdf).pvalue > SIGNIFICANT  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Parameter(choice=("a", "b", "c")), ["a", "b", "c"]),
        (Parameter(uniform=(64, 256), step=64), [64, 128, 192, 256]),
        (Parameter(uniform=(0.1, 0.45), step=0.1), [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_every_listed_value_and_every_step_is_equally_likely(
    parameter: Parameter, values: list[object]
) -> None:
    found = draws(parameter)
    counts = [sum(value == wanted for value in found) for wanted in values]
    assert sum(counts) == DRAWS
    assert stats.chisquare(counts).pvalue > SIGNIFICANT


def test_whole_bounds_and_step_give_whole_numbers() -> None:
    found = draws(Parameter(loguniform=(1_000, 30_000), step=500))
    assert all(type(value) is int and (value - 1_000) % 500 == 0 for value in found)  # type: ignore[operator]
    assert {type(value) for value in draws(Parameter(uniform=(1, 4)))} == {float}


@given(
    low=st.floats(1e-6, 1e3),
    factor=st.floats(1.5, 1e4),
    steps=st.one_of(st.none(), st.integers(1, 50)),
    log=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_what_is_drawn_or_moved_is_legal(
    low: float, factor: float, steps: int | None, log: bool, seed: int
) -> None:
    high = low * factor
    bounds = {"loguniform" if log else "uniform": (low, high)}
    parameter = Parameter(**bounds, step=None if steps is None else (high - low) / steps)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    value = parameter.draw(rng)
    assert parameter.contains(value)
    moved = parameter.neighbour(value, rng)
    assert parameter.contains(moved)
    if steps is None and 1.25 * low < value < high / 1.2:
        assert moved / value == pytest.approx(1.2) or moved / value == pytest.approx(0.8)


def test_a_neighbour_in_a_list_is_beside_it() -> None:
    parameter = Parameter(choice=([8, 16], [16, 32], [32, 64]))
    rng = np.random.default_rng(0)
    assert {str(parameter.neighbour([16, 32], rng)) for _ in range(50)} == {"[8, 16]", "[32, 64]"}
    assert {str(parameter.neighbour([8, 16], rng)) for _ in range(50)} == {"[8, 16]", "[16, 32]"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "exactly one of"),
        ({"choice": [1], "grid": [2]}, "got choice, grid"),
        ({"uniform": [2, 1]}, "must be below"),
        ({"loguniform": [0, 1]}, "above zero"),
        ({"choice": [1, 2], "step": 1}, "no meaning with choice"),
        ({"uniform": [0, 1], "step": 2}, "more than the whole range"),
        ({"uniform": [0, float("inf")]}, "finite number"),
    ],
)
def test_impossible_parameters_are_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Parameter.model_validate(content)


CONDITIONAL = {
    "net": Parameter(choice=("unet", "dit")),
    "unet.width": Parameter(choice=(32, 64), when={"net": "unet"}),
    "unet.deep": Parameter(grid=(True, False), when={"unet.width": [64]}),
    "lr": Parameter(loguniform=(1e-4, 1e-2), when={"optimizer": "adam"}),
}


@given(seed=st.integers(0, 2**31), number=st.integers(0, 100), optimizer=st.sampled_from(["adam", "sgd"]))
@settings(max_examples=100, deadline=None)
def test_a_field_is_there_exactly_where_its_conditions_hold(seed: int, number: int, optimizer: str) -> None:
    values = space.drawn(CONDITIONAL, seed, number, {"optimizer": optimizer})
    assert ("unet.width" in values) == (values["net"] == "unet")
    assert ("unet.deep" in values) == (values.get("unet.width") == 64)
    assert ("lr" in values) == (optimizer == "adam")


def test_a_condition_on_a_field_that_does_not_apply_does_not_hold() -> None:
    values = {"net": "dit", "unet.width": 64, "unet.deep": True}
    assert space.active(CONDITIONAL, values, {}) == {"net": "dit"}


def test_the_values_of_a_trial_do_not_depend_on_how_many_there_are() -> None:
    recipe = {"optimizer": "adam"}
    few = [space.drawn(CONDITIONAL, 3, n, recipe) for n in range(4)]
    many = [space.drawn(CONDITIONAL, 3, n, recipe) for n in range(40)]
    assert many[:4] == few
    assert len({value["lr"] for value in many}) == 40


def test_random_search_walks_through_every_combination_of_the_grids() -> None:
    grids = {
        "a": Parameter(grid=(1, 2, 3)),
        "b": Parameter(grid=("x", "y")),
        "c": Parameter(uniform=(0.0, 1.0)),
    }
    found = [space.drawn(grids, 0, n, {}) for n in range(6)]
    assert [(v["a"], v["b"]) for v in found] == list(itertools.product((1, 2, 3), ("x", "y")))


def test_a_grid_is_every_possible_point_once() -> None:
    countable = {name: CONDITIONAL[name] for name in ("net", "unet.width", "unet.deep")}
    assert list(space.combinations(countable, {})) == [
        {"net": "unet", "unet.width": 32},
        {"net": "unet", "unet.width": 64, "unet.deep": True},
        {"net": "unet", "unet.width": 64, "unet.deep": False},
        {"net": "dit"},
    ]
    with pytest.raises(ValueError, match=r"tune\.space\.lr: a grid needs values that can be counted"):
        list(space.combinations(CONDITIONAL, {}))


def test_conditions_in_a_circle_or_on_values_that_never_come_are_refused() -> None:
    circle = {
        "a": Parameter(choice=(1,), when={"b": 1}),
        "b": Parameter(choice=(1,), when={"c": 1}),
        "c": Parameter(choice=(1,), when={"a": 1}),
    }
    assert "a -> b -> c -> a" in space.problems(circle)[0]
    never = {"a": Parameter(choice=("x", "y")), "b": Parameter(choice=(1,), when={"a": "z"})}
    assert space.problems(never) == ["tune.space.b.when: a is never 'z', but one of 'x', 'y'"]
    assert space.problems(CONDITIONAL) == []


@given(st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_perturbed_values_are_legal_and_resampled_as_often_as_asked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = space.drawn(CONDITIONAL, seed, 0, {"optimizer": "adam"})
    found = space.perturbed(CONDITIONAL, values, rng, 0.0, {"optimizer": "adam"})
    assert found["lr"] in [pytest.approx(CONDITIONAL["lr"].nearest(values["lr"] * f)) for f in (0.8, 1.2)]
    assert all(CONDITIONAL[name].contains(value) for name, value in found.items())


def test_values_are_put_at_their_fields_and_nothing_else_changes() -> None:
    content = {"train": {"batch": 8, "images": 100}, "model": {"family": "gan"}}
    changed = fields.with_values(content, {"train.batch": 16, "model.ema.rampup": None, "seed": 3})
    assert changed == {
        "train": {"batch": 16, "images": 100},
        "model": {"family": "gan", "ema": {"rampup": None}},
        "seed": 3,
    }
    assert content == {"train": {"batch": 8, "images": 100}, "model": {"family": "gan"}}
    with pytest.raises(ValueError, match=r"tune\.space\.train\.batch\.size: train\.batch is 8"):
        fields.with_values(content, {"train.batch.size": 1})


def test_fields_that_would_make_trials_incomparable_are_refused() -> None:
    bad = ["name", "tracking.uri", "evaluate.samples", "data.path", "parallel.workers", "tune.trials", "a..b"]
    assert len(fields.problems(bad)) == len(bad)
    assert fields.problems(["train.batch", "evaluate.sampling.guidance", "data.shuffle_window", "seed"]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": None}, "give a number"),
        ({"metric": "loss"}, "pattern"),
        ({"space": {}}, "at least 1"),
        ({"scheduler": {"kind": "pbt", "every": 5}, "concurrency": 2}, "side by side"),
        (
            {"scheduler": {"kind": "pbt", "every": 5}, "concurrency": 4, "search": {"kind": "optuna"}},
            "does not go with it",
        ),
        ({"scheduler": {"kind": "asha"}}, "grace"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict[str, object], message: str) -> None:
    content = {"space": {"seed": {"choice": [1, 2]}}, "metric": "train/d/loss", "trials": 4, **changes}
    with pytest.raises(ValidationError, match=message):
        TuneSettings.model_validate(content)
