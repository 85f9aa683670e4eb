"""The share of the time that trains, under failures that come at random."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

HOUR = 3600.0
RATES: Mapping[str, tuple[float, int]] = MappingProxyType(
    {
        "Kokolis et al. 2024": (7.9 * HOUR, 1024),
        "Llama 3, Dubey et al. 2024": (54 * 24 * HOUR / 419, 16_384),
    }
)
"""Published mean seconds to a failure of a job on so many GPUs: jobs of 1,024 GPUs on Meta's research
clusters (7.9 h, "Revisiting Reliability in Large-Scale Machine Learning Research Clusters"), and 419
unexpected interruptions in 54 days on 16,384 H100 (section 3.3.4)."""


def mean_time(rate: tuple[float, int], gpus: int) -> float:
    """Seconds to a failure on `gpus` GPUs, each of which fails alike."""
    seconds, known = rate
    return seconds * known / gpus


def goodput(interval: float, stall: float, restart: float, mean: float) -> float:
    """Of wall time, what makes lasting progress, in (0, 1).

    A checkpoint every `interval` seconds of training halts it for `stall`; failures come as a Poisson process
    with `mean` seconds between them, and each costs `restart` and what was done since the last checkpoint. A
    failure during a restart starts it again. The expected time of an interval is
    (mean + restart') (exp((interval + stall) / mean) - 1) (Daly 2006, eq. 8), where restart' is that of a
    restart that succeeds.
    """
    again = mean * math.expm1(restart / mean)
    try:
        expected = (mean + again) * math.expm1((interval + stall) / mean)
    except OverflowError:
        return 0.0
    return interval / expected


def best_interval(stall: float, mean: float) -> float:
    """Seconds of training between checkpoints that lose least: sqrt(2 stall mean) (Young 1974)."""
    return math.sqrt(2 * stall * mean)
