"""The hierarchical VAE against torch.distributions and a linear-Gaussian ladder of known likelihood."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch import distributions as dist

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.families.vae.config import VaeConfig
from sfumato.families.vae.latents.hierarchical import HierarchicalLatent, HierarchicalNetwork
from sfumato.families.vae.likelihoods import Likelihood
from sfumato.families.vae.likelihoods.mixture import LogisticMixtureConfig
from sfumato.families.vae.top_down import Block, Group

PROGRESS = Progress(step=0, images=0, total_images=1_000, batch=4)


class Linear(nn.Module):
    """Mean and log standard deviation of a latent number, linear in the features; then features as added."""

    def __init__(self, weights: list[float], constants: list[float]) -> None:
        super().__init__()
        self.weights, self.constants = weights, constants

    def forward(self, x: Tensor) -> Tensor:
        sums = [
            sum(w * x[:, i : i + 1] for i, w in enumerate(row)) + c
            for row, c in zip(self.weights, self.constants, strict=True)
        ]
        return torch.cat([part.expand(len(x), 1, 1, 1) for part in sums], dim=1)


class Normal(Likelihood):
    """x given the features: N(first feature, 1/4)."""

    def each(self, x_BCHW: Tensor, output_BOHW: Tensor) -> Tensor:
        return dist.Normal(output_BOHW, 0.5).log_prob(x_BCHW)

    mean = draw = None  # not needed


def ladder(posterior: list[Linear]) -> HierarchicalNetwork:
    """z1 ~ N(0, 1); z2 ~ N(0.8 z1, 0.6^2); x ~ N(z1 + z2, 0.5^2), with features (z1 + z2, z1)."""
    latent = HierarchicalLatent(
        width=2, bottleneck=1, dim=1, groups=(2,), blocks=(1,), factors=(), likelihood=LogisticMixtureConfig()
    )
    network = HierarchicalNetwork(latent, DataSpec(1, 1, 1), 0)
    priors = [
        Linear([[0, 0], [0, 0], [0, 0], [0, 0]], [0, 0, 0, 0]),
        Linear([[0, 0.8], [0, 0], [0, 0], [0, 0]], [0, math.log(0.6), 0, 0]),
    ]
    adds = [Linear([[1.0], [1.0]], [0, 0]), Linear([[1.0], [0.0]], [0, 0])]
    for group, prior, own, add in zip(network.groups, priors, posterior, adds, strict=True):
        assert isinstance(group, Group)
        group.prior, group.posterior, group.add, group.block = prior, own, add, nn.Identity()
    network.first, network.encoder = Linear([[1.0], [0.0]], [0, 0]), nn.ModuleList([nn.Identity()])
    network.last, network.likelihood = Linear([[1.0, 0.0]], [0]), Normal()
    return network


def exact_posterior() -> list[Linear]:
    """q(z1 | x), then q(z2 | z1, x), by conditioning the joint normal distribution."""
    joint = np.array([[1, 0.8], [0.8, 0.8**2 + 0.6**2]])
    both = np.array([joint[0].sum(), joint[1].sum()])
    variance = joint.sum() + 0.25
    gain, left = both[0] / variance, 1 - both[0] ** 2 / variance
    # x - z1 = z2 + noise, with z2 ~ N(0.8 z1, 0.36): features are (z1, z1, x, 0).
    second = 0.36 / (0.36 + 0.25)
    of_z1 = 0.8 - second * 1.8
    return [
        Linear([[0, 0, gain, 0], [0, 0, 0, 0]], [0, 0.5 * math.log(left)]),
        Linear([[0, of_z1, second, 0], [0, 0, 0, 0]], [0, 0.5 * math.log(0.36 - second * 0.36)]),
    ]


def wide_posterior() -> list[Linear]:
    return [
        Linear([[0, 0, 0.3, 0], [0, 0, 0, 0]], [0.1, -0.5]),
        Linear([[0, 0.2, 0.3, 0], [0, 0, 0, 0]], [0.0, -0.4]),
    ]


X = torch.tensor([-2.0, 0.0, 0.7, 3.0]).view(4, 1, 1, 1)
LOG_LIKELIHOOD = torch.from_numpy(
    stats.norm(0, math.sqrt(1 + 2 * 0.8 + 0.8**2 + 0.6**2 + 0.25)).logpdf(X.flatten().numpy())
).float()


@torch.no_grad()
def test_the_exact_posterior_makes_the_bound_the_likelihood() -> None:
    """For every draw log p(x | z) + log p(z) - log q(z | x) is log p(x), and so is the ELBO in the mean."""
    network = ladder(exact_posterior())
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    log_prob, _, log_ratio = network(X, noise, None)
    torch.testing.assert_close(log_prob + log_ratio, LOG_LIKELIHOOD, rtol=1e-4, atol=1e-4)
    many = torch.randn(4 * 20_000, 2, generator=torch.Generator().manual_seed(1))
    log_prob, kl, _ = network(X.repeat(20_000, 1, 1, 1), many, None)
    elbo = (log_prob - kl.sum(1)).view(20_000, 4).mean(0)
    torch.testing.assert_close(elbo, LOG_LIKELIHOOD, rtol=0, atol=0.02)


@torch.no_grad()
def test_the_importance_weighted_bound_rises_to_the_likelihood() -> None:
    network, gaps = ladder(wide_posterior()), []
    for draws in (1, 10, 2_000):
        rows = 400 if draws < 100 else 20
        noise = torch.randn(draws, rows * 4, 2, generator=torch.Generator().manual_seed(2))
        weights = []
        for each in noise:
            log_prob, _, log_ratio = network(X.repeat(rows, 1, 1, 1), each, None)
            weights.append(log_prob + log_ratio)
        bound = torch.logsumexp(torch.stack(weights), 0) - math.log(draws)
        gaps.append((LOG_LIKELIHOOD - bound.view(rows, 4).mean(0)).max().item())
    assert gaps[0] > gaps[1] > gaps[2]
    assert abs(gaps[2]) < 0.02


def small(**settings) -> HierarchicalLatent:
    return HierarchicalLatent.tiny().model_copy(update=settings)


def moved(network: HierarchicalNetwork) -> HierarchicalNetwork:
    with seeded(3), torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


@torch.no_grad()
def test_kl_and_ratio_are_those_of_torch_distributions() -> None:
    group = Group(4, 2, 3, 4, 0.5)
    with seeded(4):
        for parameter in group.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        x, given, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.randn(2, 3, 4, 4)
    step = group(x, given, noise)
    (m, s), (qm, qs) = (
        part[:, :6].chunk(2, 1) for part in (group.prior(x), group.posterior(torch.cat([x, given], 1)))
    )
    p, q = dist.Normal(m, s.exp()), dist.Normal(qm, qs.exp())
    torch.testing.assert_close(step.kl_B, dist.kl_divergence(q, p).flatten(1).sum(1))
    z = qm + qs.exp() * noise
    torch.testing.assert_close(step.log_ratio_B, (p.log_prob(z) - q.log_prob(z)).flatten(1).sum(1))


@pytest.mark.parametrize("free", [0.0, 5.0])
def test_the_loss_counts_each_group_at_least_at_its_free_bits(free: float) -> None:
    latent = small(free_bits=free)
    family = VaeConfig(latent=latent).build(DataSpec(1, 8, 8))
    network = moved(HierarchicalNetwork(latent, DataSpec(1, 8, 8), 0))
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(5)).mul(255).round() / 127.5 - 1

    def rng() -> StreamRng:
        return StreamRng([Piece(0, 0, 4)], rows_per_stream=4, seed=1, images=0, phase="elbo")

    out = family.phases[0].loss({"network": network}, {"image": x}, PROGRESS, rng())
    log_prob, kl, _ = network(x, rng().normal(68), None)
    expected = (torch.stack([each.clamp(min=free) for each in kl.unbind(1)]).sum(0) - log_prob) / 64
    torch.testing.assert_close(out.loss_B, expected)
    assert (kl < 5).any()


@torch.no_grad()
def test_one_sample_is_the_elbo_and_more_are_tighter() -> None:
    rows = {"image": torch.full((64, 1, 8, 8), 7 / 127.5 - 1)}
    bounds = []
    for draws in (1, 8, 40):
        family = VaeConfig(latent=small(importance_samples=draws)).build(DataSpec(1, 8, 8))
        with seeded(6):
            network = moved(family.nets["network"].build())
        bits = family.bits_per_dim({"ema": network}, rows, PROGRESS, SampleRng(0, range(64)))
        bounds.append(bits.mean().item())
    assert bounds[0] > bounds[1] > bounds[2]


@torch.no_grad()
def test_finer_groups_see_coarser_ones_and_not_the_reverse() -> None:
    network = moved(HierarchicalNetwork(small(groups=(2, 2)), DataSpec(1, 8, 8), 0))
    noise = torch.randn(1, 2 * 4 + 2 * 64, generator=torch.Generator().manual_seed(7))
    _, before = network.draw(noise, None)
    for number, place in enumerate((0, 4, 8, 72)):
        other = noise.clone()
        other[0, place] += 1
        _, after = network.draw(other, None)
        same = [torch.equal(one.x_BWhw, two.x_BWhw) for one, two in zip(before, after, strict=True)]
        assert same == [step < number for step in range(4)]


def test_the_mixtures_center_lies_on_the_likeliest_component() -> None:
    likelihood = LogisticMixtureConfig(components=2).build(3)
    output = torch.zeros(1, likelihood.outputs, 1, 1)
    output[0, 1] = 3.0  # the second component
    output[0, 5:8, 0, 0] = torch.tensor([0.1, 0.2, 0.3])
    output[0, -3:, 0, 0] = 100.0  # coefficients tanh(100) = 1
    expected = torch.tensor([0.1, 0.2 + 0.1, 0.3 + 0.1 + 0.3])
    torch.testing.assert_close(likelihood.mean(output).flatten(), expected)


def test_blocks_on_single_pixels_are_pointwise() -> None:
    assert [layer.kernel_size for layer in Block(2, 2, 2, 1).layers] == [(1, 1)] * 4
    assert [layer.kernel_size[0] for layer in Block(2, 2, 2, 4).layers] == [1, 3, 3, 1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"latent": HierarchicalLatent()}, "multiple of 28, got 8; use a product of factors among 2, 4, 8"),
        ({"latent": HierarchicalLatent.tiny(), "network": {"channels": (4,), "norm_groups": 2}}, "no effect"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict, says: str) -> None:
    found = VaeConfig(**settings).problems(DataSpec(1, 8, 8))
    assert any(says in line for line in found), found


def test_levels_must_agree() -> None:
    with pytest.raises(ValueError, match="one less in factors"):
        HierarchicalLatent(groups=(1, 1), blocks=(1,), factors=(2,))


def test_published_sizes() -> None:
    """VDVAE for CIFAR-10 has 39 million parameters (Child 2021, table 2)."""
    latent = HierarchicalLatent(
        width=384, dim=16, groups=(22, 11, 6, 3, 1), blocks=(11, 6, 6, 3, 3), factors=(2, 2, 2, 4)
    )
    with torch.device("meta"):
        network = HierarchicalNetwork(latent, DataSpec(3, 32, 32), 0)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == 39
