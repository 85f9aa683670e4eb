"""Averages of any length: their definition, and their reconstruction, against averages that were kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.core.progress import Progress
from sfumato.core.schedules import EmaSchedule, power_exponent
from sfumato.errors import CheckpointError
from sfumato.training.post_hoc import Profile, coefficients, correlation, ema_name, reconstruct, widths

BATCH, STEPS = 64, 400


def trajectory() -> Tensor:
    """Weights that drift and jitter, [STEPS, 3]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(STEPS, 3, generator=generator, dtype=torch.float64)
    return torch.linspace(0, 5, STEPS, dtype=torch.float64)[:, None].sqrt() + 0.1 * noise.cumsum(0) / 10


def averages(sigma_rel: float) -> list[Tensor]:
    """The average after every step, by the update that training does."""
    schedule, found, average = EmaSchedule(sigma_rel=sigma_rel), [], torch.zeros(3, dtype=torch.float64)
    for step, weights in enumerate(trajectory(), start=1):
        decay = schedule.decay(Progress(step, step * BATCH, STEPS * BATCH, BATCH))
        average = decay * average + (1 - decay) * weights
        found.append(average)
    return found


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_exponent_solves_the_cubic_of_the_paper(sigma_rel: float) -> None:
    """EDM2's code takes the largest real root of gamma^3 + 7 gamma^2 + (16 - s) gamma + (12 - s)."""
    s = sigma_rel**-2
    roots = np.roots([1, 7, 16 - s, 12 - s])
    assert power_exponent(sigma_rel) == pytest.approx(roots.real.max(), rel=1e-9)


def test_known_exponents_and_impossible_widths() -> None:
    assert power_exponent(0.1) == pytest.approx(6.94, abs=0.005)  # the paper's example
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.005)
    for width in (0.0, 1 / math.sqrt(12), 0.5):
        with pytest.raises(ValueError, match=r"between 0 and 0\.289"):
            power_exponent(width)


def test_the_average_has_the_weights_of_its_profile() -> None:
    """After t steps, weight k counts as the integral of (gamma + 1) x^gamma / t^(gamma + 1) over its step."""
    gamma = power_exponent(0.1)
    edges = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
    share = edges[1:] ** (gamma + 1) - edges[:-1] ** (gamma + 1)
    torch.testing.assert_close(averages(0.1)[-1], (share[:, None] * trajectory()).sum(0))


def test_correlation_is_the_integral_of_the_product() -> None:
    a, b = Profile(700, 0.1), Profile(1000, 0.06)
    x = (np.arange(200_000) + 0.5) / 200_000 * 1000
    ga, gb = power_exponent(0.1), power_exponent(0.06)
    pa = np.where(x < 700, (ga + 1) * x**ga / 700 ** (ga + 1), 0)
    pb = (gb + 1) * x**gb / 1000 ** (gb + 1)
    assert correlation(a, b) == pytest.approx((pa * pb).mean() * 1000, rel=1e-5)
    assert correlation(a, b) == pytest.approx(correlation(b, a), rel=1e-12)


def snapshots(every: int, dtype: torch.dtype) -> list[tuple[int, dict[str, Tensor]]]:
    kept = {sigma: averages(sigma) for sigma in (0.05, 0.1)}
    return [
        (
            step * BATCH,
            {
                **{f"nets/{ema_name('net', s)}/w": kept[s][step - 1].to(dtype) for s in kept},
                **{f"nets/{ema_name('net', s)}/count": torch.tensor(step) for s in kept},
            },
        )
        for step in range(every, STEPS + 1, every)
    ]


@pytest.mark.parametrize("sigma_rel", [0.04, 0.075, 0.15, 0.2])
def test_reconstructs_the_average_that_was_not_kept(sigma_rel: float) -> None:
    true = averages(sigma_rel)[-1]
    found, distance = reconstruct(snapshots(20, torch.float64), "net", Profile(STEPS * BATCH, sigma_rel))
    spread = (averages(0.05)[-1] - averages(0.25)[-1]).abs().max()
    assert (found["w"].double() - true).abs().max() < 0.02 * spread
    assert distance < 0.05
    assert found["count"].item() == STEPS and found["w"].dtype == torch.float32


def test_in_the_middle_of_training_and_from_half_precision() -> None:
    true = averages(0.08)[299]
    found, _ = reconstruct(snapshots(20, torch.float16), "net", Profile(300 * BATCH, 0.08))
    torch.testing.assert_close(found["w"].double(), true, rtol=0, atol=5e-3)


def test_a_kept_average_is_its_own_reconstruction() -> None:
    given = [Profile(1000, 0.05), Profile(1000, 0.1), Profile(500, 0.1)]
    np.testing.assert_allclose(coefficients(given, given[1]), [0, 1, 0], atol=1e-9)


def test_a_network_without_snapshots_is_named() -> None:
    with pytest.raises(CheckpointError, match="no average of network 'other'"):
        widths(["nets/net~0.05/w"], "other")
