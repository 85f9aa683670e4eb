"""Guidance within an interval, rescaled, and by a worse model, under every objective that can be guided."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.guidance.labels import Guided
from sfumato.families.diffusion.objectives.ddpm import DDPM, DDPMConfig, DDPMSampling
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule
from sfumato.families.diffusion.objectives.edm import EDM, EDMConfig, EDMSampling
from sfumato.families.diffusion.objectives.rectified_flow import (
    RectifiedFlow,
    RectifiedFlowConfig,
    RectifiedFlowSampling,
)
from sfumato.families.diffusion.pipeline import Guidance, guided_output

NULL = 5
INTERVAL = (0.2, 2.0)
OBJECTIVES = [
    (DDPM(DDPMConfig()), DDPMSampling(sampler="dpmsolver++", steps=20)),
    (DDPM(DDPMConfig()), DDPMSampling(sampler="ddim", steps=20)),
    (EDM(EDMConfig()), EDMSampling(sampler="euler", steps=20)),
    (RectifiedFlow(RectifiedFlowConfig()), RectifiedFlowSampling(sampler="euler", steps=20)),
]
NAMES = ["dpmsolver++", "ddim", "edm", "rectified_flow"]


class Counted(torch.nn.Module):
    """Output that depends on the label; remembers the rows and the time of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, float]] = []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.calls.append((len(x), float(t)))
        shift = 0 if labels is None else labels.view(-1, 1, 1, 1) / 10
        return (0.1 * x + shift,)


def sigma_of(objective: Any, t: float) -> float:
    """The noise level of a network's time, by each paper's own formula."""
    if isinstance(objective, EDM):
        return math.exp(4 * t)  # c_noise = ln(sigma) / 4
    if isinstance(objective, RectifiedFlow):
        return t / 1000 / (1 - t / 1000) if t < 1000 else math.inf
    abar = NoiseSchedule("cosine", 1000).alpha_bar[int(t)].item()
    return math.sqrt((1 - abar) / abar)


@pytest.mark.parametrize(("objective", "options"), OBJECTIVES, ids=NAMES)
def test_guidance_acts_in_its_interval_alone(objective: Any, options: Any) -> None:
    """Kynkäänniemi et al. 2024: twice the rows for sigma_lo < sigma <= sigma_hi, and once elsewhere."""
    network, rng = Counted(), SampleRng(0, range(3))
    guided = Guided(network, torch.tensor([0, 1, 2]), 3.0, NULL, interval=INTERVAL)
    objective.sample(guided, rng.normal(1, 2, 2), options, rng, clip=True)
    levels = [(rows, sigma_of(objective, t)) for rows, t in network.calls]
    assert {rows for rows, _ in levels} == {3, 6}
    assert all((rows == 6) == (INTERVAL[0] < sigma <= INTERVAL[1]) for rows, sigma in levels)


@pytest.mark.parametrize(("objective", "options"), OBJECTIVES, ids=NAMES)
def test_the_whole_line_as_interval_is_plain_guidance(objective: Any, options: Any) -> None:
    found = []
    for interval in (None, (0.0, math.inf)):
        rng = SampleRng(0, range(3))
        guided = Guided(Counted(), torch.tensor([0, 1, 2]), 3.0, NULL, interval=interval)
        found.append(objective.sample(guided, rng.normal(1, 2, 2), options, rng, clip=True))
    assert torch.equal(*found)


@pytest.mark.parametrize("phi", [0.0, 0.4, 1.0])
def test_rescaling_is_the_papers(phi: float) -> None:
    """Lin et al. 2023, eq. 14 to 16: by the deviation of each row's own values."""
    generator = torch.Generator().manual_seed(0)
    worse, better = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    found = Guidance(2.5, rescale=phi).mixed(worse, better)
    plain = worse + 2.5 * (better - worse)
    expected = torch.stack(
        [phi * p * (b.std() / p.std()) + (1 - phi) * p for p, b in zip(plain, better, strict=True)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    if phi == 1:
        torch.testing.assert_close(found.flatten(1).std(1), better.flatten(1).std(1))


def test_a_worse_model_takes_the_place_of_the_null_class() -> None:
    """Karras et al. 2024, eq. 1: D0 + w (D1 - D0), each network once on the plain batch."""
    x, labels, t = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 4]), torch.tensor(7.0)
    network, weak = Counted(), Counted()

    def worse(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return weak(x, t, None, return_dict=False)[0]  # type: ignore[no-any-return]

    found = guided_output(network, x, t, labels, guidance=Guidance(1.7), null=NULL, worse=worse)
    good, bad = 0.1 * x + labels.view(-1, 1, 1, 1) / 10, 0.1 * x
    torch.testing.assert_close(found, bad + 1.7 * (good - bad))
    assert [rows for rows, _ in network.calls + weak.calls] == [3, 3]
    plain = guided_output(network, x, t, labels, guidance=Guidance(1.0), null=NULL, worse=worse)
    torch.testing.assert_close(plain, good)
    assert len(weak.calls) == 1
