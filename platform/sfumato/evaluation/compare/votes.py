"""From the votes of a two-alternative study to win rates and strengths with intervals.

Bradley & Terry (1952): run i is preferred to run j with probability s_i / (s_i + s_j). The strengths that
make the votes most probable come from Hunter's (2004) iteration

    s_i <- W_i / sum_{j != i} n_ij / (s_i + s_j)

where n_ij votes compared i with j and i won W_i in all; a draw counts half for both. Intervals of
the log-strengths are Wald's, from the inverse of the observed information. The maximum likelihood exists
only if the runs cannot be split into two groups of which one never won (Ford 1957).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.sparse.csgraph import connected_components

from sfumato.evaluation.statistics import Float64Array

ROUNDS = 10_000
TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class Vote:
    """One comparison of two runs; `winner` is one of them, or None for a draw."""

    first: str
    second: str
    winner: str | None


@dataclass(frozen=True, slots=True)
class WinRate:
    """Share of the votes between two runs that the first won, draws halved, with Wilson's interval."""

    first: str
    second: str
    votes: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Strength:
    """The log-strength of a run, zero on average over all; `rate` is its chance against an average run."""

    name: str
    log_strength: float
    low: float
    high: float

    @property
    def rate(self) -> float:
        return 1 / (1 + math.exp(-self.log_strength))


def wins(votes: Sequence[Vote], names: Sequence[str]) -> Float64Array:
    """How often the row beat the column [R, R]; draws are half a win for both."""
    place = {name: index for index, name in enumerate(names)}
    won_RR = np.zeros((len(names), len(names)))
    for vote in votes:
        first, second = place[vote.first], place[vote.second]
        share = 0.5 if vote.winner is None else float(vote.winner == vote.first)
        won_RR[first, second] += share
        won_RR[second, first] += 1 - share
    return won_RR


def win_rates(won_RR: Float64Array, names: Sequence[str], confidence: float = 0.95) -> list[WinRate]:
    """The rates of every two runs that were compared."""
    found = []
    for i, j in itertools.combinations(range(len(names)), 2):
        total = won_RR[i, j] + won_RR[j, i]
        if total:
            low, high = _wilson(won_RR[i, j] / total, total, confidence)
            found.append(WinRate(names[i], names[j], round(total), won_RR[i, j] / total, low, high))
    return found


def bradley_terry(
    won_RR: Float64Array, names: Sequence[str], confidence: float = 0.95
) -> list[Strength] | None:
    """Strengths, strongest first; None if the votes do not determine them (see above)."""
    groups, _ = connected_components(won_RR > 0, directed=True, connection="strong")
    if groups > 1 or len(names) < 2:
        return None
    log_R = np.log(_strengths(won_RR))
    log_R -= log_R.mean()
    reach = float(stats.norm.ppf((1 + confidence) / 2))
    error_R = np.sqrt(np.diag(_covariance(log_R, won_RR + won_RR.T)))
    found = [
        Strength(name, float(value), float(value - reach * error), float(value + reach * error))
        for name, value, error in zip(names, log_R, error_R, strict=True)
    ]
    return sorted(found, key=lambda strength: -strength.log_strength)


def _strengths(won_RR: Float64Array) -> Float64Array:
    total_R, compared_RR = won_RR.sum(axis=1), won_RR + won_RR.T
    strength_R = np.ones(len(won_RR))
    for _ in range(ROUNDS):
        before_R = strength_R
        pull_RR = compared_RR / (strength_R[:, None] + strength_R[None, :])
        strength_R = total_R / pull_RR.sum(axis=1)
        strength_R /= np.exp(np.log(strength_R).mean())
        if np.abs(np.log(strength_R / before_R)).max() < TOLERANCE:
            break
    return strength_R


def _covariance(log_R: Float64Array, compared_RR: Float64Array) -> Float64Array:
    """Pseudo-inverse of the information: the mean fixes its null direction, a shift of all strengths."""
    chance_RR = 1 / (1 + np.exp(log_R[None, :] - log_R[:, None]))
    weight_RR = compared_RR * chance_RR * (1 - chance_RR)
    information_RR = np.diag(weight_RR.sum(axis=1)) - weight_RR
    return np.asarray(np.linalg.pinv(information_RR, hermitian=True), dtype=np.float64)


def _wilson(rate: float, votes: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval; by its formula, since half wins are not whole numbers."""
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = (rate + z * z / (2 * votes)) / (1 + z * z / votes)
    reach = z / (1 + z * z / votes) * math.sqrt(rate * (1 - rate) / votes + z * z / (4 * votes * votes))
    return max(0.0, centre - reach), min(1.0, centre + reach)
