"""Several tests at once: p values such that the chance of any false finding stays below the level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p: Sequence[float], tests: int) -> list[float]:
    """Holm's (1979) adjusted p values, in the order given, for `tests` tests of which these are some.

    Tests that are not among `p` are taken for the least significant, which can only make a value larger than
    it would be with all of them known.
    """
    assert tests >= len(p)
    order = np.argsort(p, kind="stable")
    adjusted, least = [1.0] * len(p), 0.0
    for place, index in enumerate(order.tolist()):
        least = max(least, min(1.0, (tests - place) * p[index]))
        adjusted[index] = least
    return adjusted
