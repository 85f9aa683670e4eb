"""Searches that learn from earlier trials, through Ray Tune's adapters.

Every library sees the same plain space: p0, p1 ... as ranges or as the index of a choice. Steps, conditions
and the check of each recipe are implemented here, the same for all. A conditional field that does not apply
is still suggested, and ignored.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.search import SEARCH_ALG_IMPORT, Searcher

from sfumato.errors import ConfigError, with_extra
from sfumato.runtime.sweep.trial import configuration
from sfumato.tuning import space as spaces
from sfumato.tuning.config import TuneSettings
from sfumato.tuning.journal import Trial

_PACKAGES = {"optuna": "optuna", "hyperopt": "hyperopt", "bayesopt": "bayes_opt", "hebo": "hebo", "ax": "ax"}
_SEEDS = {
    "optuna": "seed",
    "hyperopt": "random_state_seed",
    "bayesopt": "random_state",
    "hebo": "random_state_seed",
}
_TRIES = 50

Problems = Callable[[Mapping[str, Any]], list[str]]


def check_installed(kind: str) -> None:
    """Raises ConfigError if the package of a search is not installed."""
    package = _PACKAGES.get(kind)
    if package is not None and importlib.util.find_spec(package) is None:
        how = with_extra("tune") if kind == "optuna" else f"install the package that has {package!r}"
        raise ConfigError(
            f"tune.search.kind: {kind!r} needs Python's module {package!r}: {how}, or use random"
        )


class LearningSearch(Searcher):
    """Suggests known trials first (the recipe itself, those of a killed driver), then the library's."""

    def __init__(
        self,
        settings: TuneSettings,
        mode: str,
        path: str,
        recipe: Mapping[str, Any],
        *,
        first: Sequence[Trial],
        numbers: Sequence[int],
        problems: Problems,
        announce: Callable[[int, Mapping[str, Any], Mapping[str, Any]], None],
    ) -> None:
        super().__init__(metric="objective", mode=mode)
        self._space = settings.space
        self._path = path
        self._recipe = recipe
        self._first = list(first)
        self._numbers = list(numbers)
        self._problems = problems
        self._announce = announce
        self._keys: dict[str, str] = {}
        self._resumed: dict[str, Trial] = {}
        self._library = _library(settings, mode)

    def tell(self, trial: Trial) -> None:
        """Tell the library the result of a trial of an earlier call."""
        if trial.asked and trial.last is not None and math.isfinite(trial.last.value):
            self._library.add_evaluated_point(dict(trial.asked), trial.last.value)

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True  # the library knows them

    def suggest(self, trial_id: str) -> Any:
        """A configuration, None for not now, or FINISHED, as in Tune's search algorithms."""
        if self._first:
            trial = self._first.pop(0)
            self._resumed[trial_id] = trial
            return configuration(self._path, trial.number, trial.values)
        if not self._numbers:
            return str(Searcher.FINISHED)
        for attempt in range(_TRIES):
            key = f"{trial_id}-{attempt}"
            asked = self._library.suggest(key)
            if asked is None:
                return None
            values = spaces.active(self._space, self._values(asked), self._recipe)
            if not self._problems(values):
                number = self._numbers.pop(0)
                self._keys[trial_id] = key
                self._announce(number, values, asked)
                return configuration(self._path, number, values)
            self._library.on_trial_complete(key, None, error=True)
        return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The library only sees final values: values at different image counts do not compare."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        key = self._keys.pop(trial_id, None)
        if key is None:
            trial = self._resumed.pop(trial_id, None)
            if trial is not None and not error:
                self.tell(trial)
            return
        value = (result or {}).get("objective", math.nan)
        bad = error or not math.isfinite(value)
        self._library.on_trial_complete(key, None if bad else result, error=bad)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Does nothing: a resumed sweep replays the journal to the library."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def _values(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        values = {}
        for index, (name, parameter) in enumerate(self._space.items()):
            raw = asked[f"p{index}"]
            listed = parameter.listed
            values[name] = listed[int(raw)] if listed is not None else parameter.nearest(float(raw))
        return values


def _library(settings: TuneSettings, mode: str) -> Any:
    """Ray Tune's adapter of the library, with the space in its form. Raises ConfigError if it refuses."""
    kind = settings.search.kind
    check_installed(kind)
    logging.getLogger(kind).setLevel(logging.WARNING)  # optuna tells of every trial
    options = dict(settings.search.options)
    if kind in _SEEDS:
        options.setdefault(_SEEDS[kind], settings.seed)
    domains: dict[str, Any] = {}
    for index, parameter in enumerate(settings.space.values()):
        if parameter.bounds is None:
            domains[f"p{index}"] = tune.choice(list(range(len(parameter.listed or ()))))
        else:
            make = tune.uniform if parameter.uniform is not None else tune.loguniform
            domains[f"p{index}"] = make(*map(float, parameter.bounds))
    try:
        # Not by create_searcher, which passes over options that there are not.
        adapter: Any = SEARCH_ALG_IMPORT[kind]  # imports it
        found = adapter()(metric="objective", mode=mode, **options)
        found.set_search_properties("objective", mode, domains)
    except Exception as error:
        raise ConfigError(
            f"tune.search: {kind} does not take this space or these options: {error}"
        ) from error
    return found
