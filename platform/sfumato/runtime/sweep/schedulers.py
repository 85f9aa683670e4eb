"""Turns a recipe's `tune.scheduler` into Ray Tune's, with images as time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from sfumato.core.seeds import derive
from sfumato.tuning import space as spaces
from sfumato.tuning.config import AshaSettings, MedianSettings, PbtSettings, TuneSettings

_TRIES = 20


def scheduler_for(
    tune: TuneSettings,
    mode: str,
    images: int,
    recipe: Mapping[str, Any],
    problems: Callable[[Mapping[str, Any]], list[str]],
) -> TrialScheduler:
    """Ray Tune's scheduler for trials of so many images. `problems` checks values."""
    settings = tune.scheduler
    if isinstance(settings, AshaSettings):
        return AsyncHyperBandScheduler(
            time_attr="images",
            metric="objective",
            mode=mode,
            max_t=images,
            grace_period=settings.grace,
            reduction_factor=settings.reduction,
            brackets=settings.brackets,
        )
    if isinstance(settings, MedianSettings):
        return MedianStoppingRule(
            time_attr="images",
            metric="objective",
            mode=mode,
            grace_period=settings.grace,
            min_samples_required=settings.min_trials,
            # It never pauses a trial in favour of one that waits: the first pause counts from -inf.
            min_time_slice=cast(int, math.inf),
        )
    if isinstance(settings, PbtSettings):
        return PopulationBasedTraining(
            time_attr="images",
            metric="objective",
            mode=mode,
            perturbation_interval=settings.every,
            quantile_fraction=settings.quantile,
            custom_explore_fn=Explore(tune, settings, recipe, problems),
            log_config=False,
        )
    return FIFOScheduler()  # type: ignore[no-untyped-call]


class Explore:
    """New values near those of a better trial that make a possible recipe."""

    def __init__(
        self,
        tune: TuneSettings,
        settings: PbtSettings,
        recipe: Mapping[str, Any],
        problems: Callable[[Mapping[str, Any]], list[str]],
    ) -> None:
        self._tune = tune
        self._settings = settings
        self._recipe = recipe
        self._problems = problems
        self._rng = np.random.default_rng(derive(tune.seed, "pbt"))

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        """The donor's configuration with changed values, or unchanged if no nearby values are possible."""
        trial = json.loads(config["trial"])
        for _ in range(_TRIES):
            values = spaces.perturbed(
                self._tune.space, trial["values"], self._rng, self._settings.resample, self._recipe
            )
            if not self._problems(values):
                return {**config, "trial": json.dumps({**trial, "values": values})}
        return config
