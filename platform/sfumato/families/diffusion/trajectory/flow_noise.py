"""The stochastic differential equations of a flow (Ma et al. 2024, "SiT", eq. 4; Song et al. 2021, eq. 6).

With x_t = (1 - t) x_0 + t eps and the velocity v, the score is s = -(x + (1 - t) v) / t. For any w(t) >= 0

    dx = (v - w s / 2) dt + sqrt(w) dW,    t falling,

has the densities of dx = v dt. Here w = diffusion t, SiT's choice times a factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.solvers import Slope


def follow(slope: Slope, x_NCHW: Tensor, times: Sequence[float], diffusion: float, rng: SampleRng) -> Tensor:
    """x at the last of `times`, which fall, by Euler and Maruyama's method.

    A last step to 0 adds no noise: it goes to the predicted image.
    """
    for start, end in pairwise(times):
        velocity_NCHW = slope(x_NCHW, start)
        step = start - end
        if end <= 0:
            return x_NCHW - step * velocity_NCHW
        score_NCHW = -(x_NCHW + (1 - start) * velocity_NCHW) / start
        width = diffusion * start
        noise_NCHW = rng.normal(*x_NCHW.shape[1:])
        x_NCHW = (
            x_NCHW
            - step * velocity_NCHW
            + 0.5 * step * width * score_NCHW
            + math.sqrt(width * step) * noise_NCHW
        )
    return x_NCHW
