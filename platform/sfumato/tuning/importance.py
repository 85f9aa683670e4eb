"""How much each searched field matters for the metric.

A random forest learns the metric from the values of the trials; a field's importance is how much worse the
forest predicts when that field's values are shuffled between trials (permutation importance, Breiman 2001,
sec. 10), as a share of the sum over all fields. Trials are compared at the same images, so that those that
were stopped early count too. With a handful of trials this is a hint, not a finding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.tuning.journal import Trial, common_images
from sfumato.tuning.parameter import Parameter

FEWEST = 4
"""The smallest number of trials for which it is computed."""


def importances(
    trials: Sequence[Trial], space: Mapping[str, Parameter], recipe: Mapping[str, Any], *, seed: int = 0
) -> dict[str, float]:
    """By field, shares that sum to one, largest first; empty if there are too few trials.

    `recipe` has the values of trials that leave a field as it is.
    """
    images = common_images(trials)
    if images is None:
        return {}
    scored = [(trial, trial.at(images)) for trial in trials]
    rows = [(trial, value) for trial, value in scored if value is not None and math.isfinite(value)]
    if len(rows) < FEWEST or len({value for _, value in rows}) < 2:
        return {}
    names = list(space)
    table_NF = np.stack(
        [_column([trial for trial, _ in rows], name, space[name], recipe) for name in names], 1
    )
    raw_F = _permutation(table_NF, np.array([value for _, value in rows]), seed)
    total = raw_F.sum()
    if total <= 0:
        return {}
    shares = zip(names, (float(share) for share in raw_F / total), strict=True)
    return dict(sorted(shares, key=lambda item: -item[1]))


def _column(
    trials: Sequence[Trial], name: str, parameter: Parameter, recipe: Mapping[str, Any]
) -> npt.NDArray[np.float64]:
    """The field as numbers [N]: values of a range, logarithms if those are uniform, others by rank."""
    values: list[Any] = [trial.values.get(name, recipe.get(name)) for trial in trials]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numeric:
        logarithmic = parameter.loguniform is not None and all(value > 0 for value in values)
        return np.array([math.log(value) if logarithmic else float(value) for value in values])
    shown = [json.dumps(value, sort_keys=True, default=str) for value in values]
    order = {text: rank for rank, text in enumerate(dict.fromkeys(shown))}
    return np.array([float(order[text]) for text in shown])


def _permutation(
    table_NF: npt.NDArray[np.float64], value_N: npt.NDArray[np.float64], seed: int
) -> npt.NDArray[np.float64]:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    # Ranks, because the metric of a trial that diverged says nothing beyond being the worst.
    rank_N = np.argsort(np.argsort(value_N)).astype(np.float64)
    forest = RandomForestRegressor(n_estimators=128, random_state=seed).fit(table_NF, rank_N)
    found = permutation_importance(forest, table_NF, rank_N, n_repeats=16, random_state=seed)
    return np.clip(np.asarray(found.importances_mean, dtype=np.float64), 0.0, None)
