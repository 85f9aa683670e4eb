"""The discretised logistic against scipy's logistic distribution, and its mixture by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import logistic

from sfumato.layers.discretized_logistic import Mixture, log_prob, pairs, sample


def grid(levels: int) -> torch.Tensor:
    return torch.linspace(-1, 1, levels, dtype=torch.float64)


@pytest.mark.parametrize("levels", [2, 16, 256])
@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, -3.0), (0.31, -1.0), (-1.4, 0.5), (1.0, -5.0)])
def test_masses_are_those_of_the_logistic_and_sum_to_one(levels: int, mean: float, log_scale: float) -> None:
    found = log_prob(
        grid(levels), torch.tensor(mean).double(), torch.tensor(log_scale).double(), levels
    ).exp()
    edges = np.concatenate([[-np.inf], (grid(levels)[1:] - 1 / (levels - 1)).numpy(), [np.inf]])
    expected = np.diff(logistic(mean, np.exp(log_scale)).cdf(edges))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-13)
    assert found.sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("log_scale", [20.0, 59.0, 90.0, 120.0, 1e30])
def test_a_huge_scale_gives_no_infinity(log_scale: float) -> None:
    """An inner bin's mass is width / (4 scale) where the density is flat; the outer two share the rest."""
    scale = torch.tensor(log_scale, requires_grad=True)
    mean = torch.tensor(0.3, requires_grad=True)
    found = log_prob(grid(256).float(), mean, scale)
    inner = np.log(2 / 255 / 4) - min(log_scale, 60.0)
    np.testing.assert_allclose(found[1:-1].detach().numpy(), inner, rtol=1e-5)
    np.testing.assert_allclose(found[[0, -1]].detach().exp().numpy(), 0.5, rtol=1e-5)
    found.sum().backward()
    assert mean.grad is not None and scale.grad is not None
    assert torch.isfinite(mean.grad) and torch.isfinite(scale.grad)
    drawn = sample(mean, scale, torch.tensor([0.1, 0.5, 0.9]))
    assert drawn[[0, 2]].tolist() == [-1.0, 1.0] and torch.isfinite(drawn).all()


def test_gradients_are_finite_far_from_the_mean() -> None:
    mean = torch.tensor([-30.0, 0.0, 30.0], requires_grad=True)
    scale = torch.tensor([-9.0, -6.9, 2.0], requires_grad=True)
    loss = log_prob(torch.tensor([1.0, 0.5, -1.0]), mean, scale).sum()
    loss.backward()
    assert loss.isfinite() and mean.grad.isfinite().all() and scale.grad.isfinite().all()


def mixture(channels: int, components: int, levels: int, rows: int) -> Mixture:
    """The same distribution for each row."""
    generator = torch.Generator().manual_seed(1)
    parameters = torch.randn(1, Mixture.size(channels, components), 1, 1, generator=generator)
    return Mixture(parameters.expand(rows, -1, -1, -1), channels, components, levels)


@pytest.mark.parametrize(("channels", "levels"), [(1, 256), (2, 12), (3, 6)])
def test_a_mixture_sums_to_one_over_all_colours(channels: int, levels: int) -> None:
    colours = torch.tensor(list(itertools.product(grid(levels).tolist(), repeat=channels)))
    model = mixture(channels, 3, levels, len(colours))
    total = model.log_prob(colours.view(-1, channels, 1, 1)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)


def test_pairs_of_channels() -> None:
    assert [pairs(channels) for channels in (1, 2, 3)] == [0, 1, 3]


def test_draws_have_the_masses() -> None:
    """50,000 draws of a logistic and of a mixture in 8 levels against their probabilities."""
    uniform = torch.rand(50_000, generator=torch.Generator().manual_seed(2))
    mean, scale = torch.tensor(0.2), torch.tensor(-1.2)
    drawn = sample(mean, scale, uniform, 8)
    for level in grid(8).float():
        share = (drawn - level).abs().lt(1e-4).float().mean().item()
        assert share == pytest.approx(log_prob(level, mean, scale, 8).exp().item(), abs=0.01)
    noise = torch.rand(50_000, 3, 1, 1, generator=torch.Generator().manual_seed(3))
    colours = mixture(2, 3, 4, 50_000).sample(noise)[:, :, 0, 0]
    for colour in itertools.product(grid(4).float().tolist(), repeat=2):
        share = (colours - torch.tensor(colour)).abs().lt(1e-4).all(dim=1).float().mean().item()
        expected = mixture(2, 3, 4, 1).log_prob(torch.tensor(colour).view(1, 2, 1, 1)).exp().item()
        assert share == pytest.approx(expected, abs=0.01)
