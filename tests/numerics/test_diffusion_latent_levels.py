"""Noise levels on latents: twice the data, twice the noise, and nothing else than at the papers' scale."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sfumato.core.batch import Piece
from sfumato.core.earlier_defaults import as_of
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.guidance.labels import Guided, LabelDropout
from sfumato.families.diffusion.objectives.consistency import (
    Consistency,
    ConsistencyConfig,
    ConsistencySampling,
)
from sfumato.families.diffusion.objectives.edm import EDM, EDMConfig, EDMSampling

ROWS = 64
LATE = Progress(step=0, images=90, total_images=100, batch=1)


class Bent(torch.nn.Module):
    """An answer that depends on what it is shown, not on the noise level."""

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        return (torch.sin(3 * x),)


def loss(objective: Any, images: torch.Tensor) -> torch.Tensor:
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=0, images=0, phase="p")
    nets = {"network": Bent(), "teacher": Bent()}
    found: torch.Tensor = objective.loss(nets, {"image": images}, LabelDropout(None, 0), LATE, rng).loss_B
    return found


def draw(objective: Any, options: Any) -> torch.Tensor:
    rng = SampleRng(0, range(4))
    noise = rng.normal(2, 4, 4)
    found: torch.Tensor = objective.sample(Guided(Bent(), None, 1.0, 0), noise, options, rng, clip=False)
    return found


def test_edm_on_latents_is_edm2_in_proportion() -> None:
    """EDM2's latents have a standard deviation of 0.5, ours of 1."""
    y = 0.5 * torch.randn(ROWS, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    papers = EDM(EDMConfig(sigma_data=0.5, p_mean=-0.4, p_std=1.0))
    ours, theirs = loss(EDM(EDMConfig(), latents=True), 2 * y), loss(papers, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(EDM(EDMConfig(sigma_data=0.5), latents=True), y), theirs)
    options = EDMSampling(steps=6, churn=2.0)
    drawn = draw(papers, options)
    torch.testing.assert_close(draw(EDM(EDMConfig(), latents=True), options), 2 * drawn, rtol=1e-4, atol=1e-4)


def test_consistency_on_latents_is_the_papers_in_proportion() -> None:
    y = 0.5 * torch.randn(ROWS, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    config = ConsistencyConfig(distance="l2", weight="one")
    ours, theirs = Consistency(config, latents=True), Consistency(config)
    torch.testing.assert_close(loss(ours, 2 * y), 4 * loss(theirs, y), rtol=1e-3, atol=1e-5)
    for number in (11, 41):
        (levels, share), (half, same) = ours.levels(number), theirs.levels(number)
        torch.testing.assert_close(levels, 2 * half)
        torch.testing.assert_close(share, same)
    options = ConsistencySampling(steps=3)
    torch.testing.assert_close(draw(ours, options), 2 * draw(theirs, options), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("latents", [False, True])
def test_values_that_are_given_win(latents: bool) -> None:
    y = torch.randn(ROWS, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    given = EDMConfig(sigma_data=1.0, p_mean=-1.2, p_std=1.2)
    expected = loss(EDM(given), y)
    torch.testing.assert_close(loss(EDM(given, latents=latents), y), expected)
    assert EDMSampling(sigma_min=0.01, sigma_max=40.0).sigmas(7.0)[0] == 40.0
    low, high = (
        Consistency(ConsistencyConfig(sigma_min=0.01, sigma_max=40.0), latents=latents)
        .levels(11)[0][[0, -1]]
        .tolist()
    )
    assert (low, high) == pytest.approx((0.01, 40.0))


def test_runs_of_the_first_schema_keep_their_levels() -> None:
    edm = {"objective": {"kind": "edm"}, "sampling": {"steps": 4}}
    then = as_of(DiffusionConfig.model_validate(edm), 1)
    assert isinstance(then.objective, EDMConfig) and isinstance(then.sampling, EDMSampling)
    assert (then.objective.p_mean, then.objective.p_std) == (-1.2, 1.2)
    assert (then.sampling.sigma_min, then.sampling.sigma_max) == (0.002, 80.0)
    steps = {"objective": {"kind": "consistency"}, "sampling": {"steps": 2}}
    then = as_of(DiffusionConfig.model_validate(steps), 1)
    assert isinstance(then.objective, ConsistencyConfig)
    assert (then.objective.sigma_min, then.objective.sigma_max, then.objective.p_mean) == (0.002, 80.0, -1.1)
    assert isinstance(then.sampling, ConsistencySampling) and then.sampling.sigmas is None
    old = Consistency(then.objective, latents=True).levels(11)[0]
    assert old[-1].item() == pytest.approx(80.0)
    assert math.isclose(Consistency(ConsistencyConfig(), latents=True).levels(11)[0][-1].item(), 160.0)


def test_middle_levels_are_checked_against_the_range_in_proportion() -> None:
    options, objective = ConsistencySampling(steps=2, sigmas=(100.0,)), ConsistencyConfig()
    assert options.problems(objective, latents=True) == []
    assert "100 is not between 0.002 and 80" in options.problems(objective, latents=False)[0]
