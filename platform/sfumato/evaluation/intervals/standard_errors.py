"""Standard errors of figures over the randomness of their samples, the reference being fixed.

- `jackknife`: delete-a-group (Quenouille 1956; Kott 2001). Every estimate has the same number of samples, so
  the bias of a Fréchet distance in N does not look like spread. Near equal distributions a distance is all
  but quadratic in the samples, and the jackknife counts quadratic terms twice; the figures without two of
  the groups show them, and take the excess off (Efron & Stein 1981, section 5).
- `of_halves`: the delete-half jackknife (Shao & Wu 1989; the variance of a linear figure over random halves
  is that of the whole). For figures of nearest neighbours its error is 0.9 to 1.2 times the right one, where
  deleting a tenth makes it 1.3 to 1.8 times too large, and a bootstrap fails: repeated samples are neighbours
  at distance 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from sfumato.evaluation.intervals.groups import dealt
from sfumato.evaluation.statistics import Float64Array, Int64Array

GROUPS = 10
HALVES = 20
FREEDOM_OF_HALVES = 12.0
"""The variance over halves varies like one of 12 to 15 degrees of freedom (two over its squared coefficient
of variation; recall of 500 samples)."""


@dataclass(frozen=True, slots=True)
class StandardError:
    """`value` with the degrees of freedom of its estimate; the figure itself is in [`low`, `high`].

    `deviation_P`: what each sample or group adds to the figure, signed. Their squares sum to the variance
    that comes from the samples one by one; runs that share seeds share a part of it (`of_difference`).
    """

    value: float
    method: str
    freedom: float = math.inf
    low: float = -math.inf
    high: float = math.inf
    deviation_P: Float64Array | None = None


def jackknife(estimate_G: Float64Array | Sequence[float], what: str = "samples") -> StandardError:
    """From the figure without each of the groups [G]."""
    estimates, groups = np.asarray(estimate_G, np.float64), len(estimate_G)
    deviation_G = (estimates - estimates.mean()) * math.sqrt((groups - 1) / groups)
    error = math.sqrt(float(np.square(deviation_G).sum()))
    return StandardError(
        error, f"jackknife over {groups} groups of {what}", groups - 1, deviation_P=deviation_G
    )


def jackknife_of_pairs(figure: Callable[[Sequence[int]], float], groups: int = GROUPS) -> StandardError:
    """The jackknife of `figure(the groups that are kept)`, less what it counts twice; `groups` squared over
    two computations.

    The correction takes half of the variance at most, which is all of the excess of a quadratic figure.
    """
    everyone = range(groups)

    def without(*left_out: int) -> float:
        return figure([group for group in everyone if group not in left_out])

    whole, estimates = without(), [without(group) for group in everyone]
    found = jackknife(estimates)
    interaction = np.array(
        [
            groups * whole - (groups - 1) * (estimates[i] + estimates[j]) + (groups - 2) * without(i, j)
            for i, j in combinations(everyone, 2)
        ]
    )
    excess = float(np.square(interaction - interaction.mean()).sum()) / (groups * (groups - 1))
    variance = max(found.value**2 - excess, found.value**2 / 2)
    method = f"jackknife over {groups} groups of samples and their pairs"
    return StandardError(math.sqrt(variance), method, groups - 1, deviation_P=found.deviation_P)


def of_difference(
    error_a: float, error_b: float, deviation_a: Float64Array, deviation_b: Float64Array
) -> float:
    """The standard error of the difference of two runs' figures whose samples share seeds.

    Deviations of one index belong to the same seeds, and subtract before they are squared. What an error has
    beyond its deviations counts in full, and an error below them (the corrected jackknife's) shrinks them.
    """
    scale = [
        min(1.0, error / math.sqrt(total)) if (total := float(np.square(deviation_P).sum())) else 1.0
        for error, deviation_P in ((error_a, deviation_a), (error_b, deviation_b))
    ]
    mine_P, theirs_P = scale[0] * deviation_a, scale[1] * deviation_b
    rest = sum(
        max(0.0, error**2 - float(np.square(deviation_P).sum()))
        for error, deviation_P in ((error_a, mine_P), (error_b, theirs_P))
    )
    return math.sqrt(float(np.square(mine_P - theirs_P).sum()) + rest)


def random_halves(
    rows: int, rng: np.random.Generator, label_N: Int64Array | None = None
) -> npt.NDArray[np.bool_]:
    """Which samples belong to each half [2 * HALVES, N]; rows 2 i and 2 i + 1 are one split."""
    splits = [dealt(rows, 2, rng, label_N) for _ in range(HALVES)]
    return np.array([split == half for split in splits for half in (0, 1)])


def of_halves(value_B: Float64Array, low: float = -math.inf, high: float = math.inf) -> StandardError | None:
    """From the figures of `random_halves`; None if they never differ, which tells nothing."""
    error = float(value_B.std(ddof=1))
    if error == 0:
        return None
    return StandardError(
        error, f"jackknife over {len(value_B)} halves of samples", FREEDOM_OF_HALVES, low, high
    )
