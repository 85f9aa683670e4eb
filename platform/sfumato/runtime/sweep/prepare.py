"""Checks a sweep before anything starts: its known trials, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sfumato.core.batch import DataSpec
from sfumato.core.family import Trainable
from sfumato.errors import ConfigError
from sfumato.evaluation.metrics import all_metrics, all_pair_metrics
from sfumato.evaluation.metrics.likelihood import chooses_by_training
from sfumato.recipe import Recipe
from sfumato.runtime.sweep.sweep_plan import SweepPlan
from sfumato.tuning import fields
from sfumato.tuning import space as spaces
from sfumato.tuning.config import AshaSettings, MedianSettings, NoScheduler, PbtSettings, TuneSettings

_SAMPLED = 100
"""Points of a space to check if the search chooses its trials later."""
_SHOWN = 8


def mode_of(tune: TuneSettings) -> str:
    """`min` or `max`. Raises ConfigError if the metric does not determine it."""
    if tune.mode != "auto":
        return tune.mode
    kind, _, name = tune.metric.partition("/")
    if kind == "train":
        return "min"
    known: dict[str, Any] = {**all_metrics(), **all_pair_metrics()}
    fitting = [key for key in known if name == key or name.startswith(f"{key}_")]
    if not fitting:
        raise ConfigError(f"tune.mode: set min or max: there is no metric known as {tune.metric!r}")
    return "max" if known[max(fitting, key=len)].higher_is_better else "min"


def settings_problems(recipe: Recipe, tune: TuneSettings) -> list[str]:
    """Conflicts between settings, one line each."""
    found = fields.problems(tune.space) + spaces.problems(tune.space)
    kind, _, figure = tune.metric.partition("/")
    if kind.startswith("eval"):
        found += chooses_by_training("tune.metric", figure, recipe.evaluate.likelihood_on)
    if not recipe.tracking.enabled:
        found.append("tracking.enabled: false, but a sweep compares its trials in MLflow: leave it out")
    scheduler = tune.scheduler
    if isinstance(scheduler, NoScheduler):
        return found
    if tune.metric.startswith("eval") and recipe.evaluate.every is None:
        found.append(
            f"evaluate.every: scheduler {scheduler.kind} compares trials while they train, so {tune.metric} "
            "is needed then: set it, for example to a quarter of train.images"
        )
        return found
    if "train.images" in tune.space:
        found.append(f"tune.space.train.images: scheduler {scheduler.kind} compares trials of one length")
    between = recipe.evaluate.every if tune.metric.startswith("eval") else recipe.train.log_every
    assert between is not None
    name, value = _interval(scheduler)
    if value < between:
        field = "evaluate.every" if tune.metric.startswith("eval") else "train.log_every"
        found.append(
            f"tune.scheduler.{name}: {value:,} images, but the metric comes every {field}={between:,}"
        )
    if value >= recipe.train.images:
        found.append(
            f"tune.scheduler.{name}: {value:,} images, but trials end at train.images="
            f"{recipe.train.images:,}, so it would never do anything"
        )
    return found


def _interval(scheduler: AshaSettings | MedianSettings | PbtSettings) -> tuple[str, int]:
    return ("every", scheduler.every) if isinstance(scheduler, PbtSettings) else ("grace", scheduler.grace)


def lookup(recipe: Recipe) -> dict[str, Any]:
    """Every field of the recipe by dotted name, which conditions and the first trial refer to."""
    return fields.flat(recipe.model_dump(mode="json"))


def trial_values(tune: TuneSettings, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The values of every trial, if known in advance; only those of the first, if the search learns.

    Raises ConfigError for a grid that cannot be counted, or has more points than `tune.trials`.
    """
    first = [own_values(tune, recipe)] if tune.baseline else []
    if tune.search.learns:
        return first
    if tune.search.kind == "grid":
        try:
            found = first + [v for v in spaces.combinations(tune.space, recipe) if v not in first]
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if tune.trials is not None and tune.trials < len(found):
            raise ConfigError(
                f"tune.trials: {tune.trials}, but the grid has {len(found)} points (the recipe itself "
                "included): leave it out, or make the grid smaller"
            )
        return found
    assert tune.trials is not None
    return first + [spaces.drawn(tune.space, tune.seed, n, recipe) for n in range(len(first), tune.trials)]


def own_values(tune: TuneSettings, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's own values of the searched fields."""
    return spaces.active(tune.space, {name: recipe[name] for name in tune.space if name in recipe}, recipe)


def check_trials(
    plan: SweepPlan,
    tune: TuneSettings,
    recipe: Recipe,
    spec: DataSpec,
    samples: int,
    trials: Iterable[dict[str, Any]],
) -> None:
    """Raises ConfigError with the problems of all trials' recipes, each line once."""
    known = lookup(recipe)
    checked = list(trials)
    if tune.search.learns:
        checked += [spaces.drawn(tune.space, tune.seed, n, known) for n in range(_SAMPLED)]
    lines: dict[str, str] = {}
    for number, values in enumerate(checked):
        for problem in plan.problems(values, spec, samples):
            lines.setdefault(problem, f"trial {number} would be impossible: {problem}")
    if isinstance(tune.scheduler, PbtSettings) and not lines:
        lines |= {line: line for line in _shape_problems(plan, tune, spec, known)}
    if lines:
        shown = list(lines.values())
        more = [f"and {len(shown) - _SHOWN} more problems of the space"] if len(shown) > _SHOWN else []
        raise ConfigError(*shown[:_SHOWN], *more)


def _shape_problems(
    plan: SweepPlan, tune: TuneSettings, spec: DataSpec, known: Mapping[str, Any]
) -> list[str]:
    """Fields that change the networks, so that trials cannot pass on their weights."""
    own = own_values(tune, known)
    before = _shapes(plan.recipe(0, own), spec)
    found = []
    for name, parameter in tune.space.items():
        for value in parameter.extremes():
            changed = spaces.active(tune.space, {**own, name: value}, known)
            if not plan.problems(changed, spec, None) and _shapes(plan.recipe(0, changed), spec) != before:
                found.append(
                    f"tune.space.{name}: {value!r} changes the networks, and pbt passes weights between "
                    "trials: leave it out, or use another scheduler"
                )
                break
    return found


def _shapes(recipe: Recipe, spec: DataSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, without allocating memory."""
    family = recipe.model.build(spec)
    found: dict[str, tuple[int, ...]] = {}
    for name, net in family.nets.items():
        if isinstance(net, Trainable):
            with torch.device("meta"):
                module = net.build()
            found |= {f"{name}.{key}": tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    return found
