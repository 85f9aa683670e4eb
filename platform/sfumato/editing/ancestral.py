"""Steps along a path that draw noise: between every two levels, as in ancestral sampling.

From level i to i + 1, with signals a, a' and noises s, s', a step draws (Ho et al. 2020, eq. 7)

    x' = a' x_0 + sqrt(s'^2 - v) eps + sqrt(v) z,   v = s'^2 q / s^2,   q = s^2 - (a / a')^2 s'^2
"""

from __future__ import annotations

import math

from torch import Tensor

from sfumato.core.paths import Path


def spread(path: Path, at: int) -> float:
    """q, the variance that the noise of level `at` has beyond that of the next."""
    (a, s, _), (a_next, s_next, _) = path.levels[at], path.levels[at + 1]
    return max(0.0, s**2 - (a / a_next) ** 2 * s_next**2)


def mean_and_deviation(path: Path, x: Tensor, at: int) -> tuple[Tensor, float]:
    """Of x at the next level: the part that is not drawn, and sqrt(v)."""
    (a, s, _), (a_next, s_next, _) = path.levels[at], path.levels[at + 1]
    image = path.image(x, at)
    eps = (x - a * image) / s
    variance = s_next**2 * spread(path, at) / s**2
    return a_next * image + math.sqrt(max(0.0, s_next**2 - variance)) * eps, math.sqrt(variance)
