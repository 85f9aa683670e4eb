"""Splines, Flow++ and TarFlow against autograd, quadrature, scipy and the plain sequential inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.family import SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, seeded
from sfumato.errors import ConfigError
from sfumato.families.flow import rational_quadratic
from sfumato.families.flow.bijection import Decoding
from sfumato.families.flow.causal_map import CausalMap
from sfumato.families.flow.config import FlowConfig, SamplingConfig
from sfumato.families.flow.dequantization.gaussian import Gaussian, GaussianConfig
from sfumato.families.flow.family import FlowFamily, denoised
from sfumato.families.flow.mixture_cdf import Logistics
from sfumato.families.flow.network import FlowNetwork
from sfumato.families.flow.networks import NetworkConfig
from sfumato.families.flow.networks.flowpp import FlowppConfig
from sfumato.families.flow.networks.spline import SplineConfig, SplineCoupling
from sfumato.families.flow.networks.tarflow import TarFlowConfig

NETWORKS = [
    SplineConfig(levels=2, steps=2, channels=6, blocks=1, bins=5),
    FlowppConfig(levels=2, channels=6, blocks=1, heads=2, components=3),
    TarFlowConfig(patch=2, width=8, maps=3, layers=2, heads=2),
]
PLANE = [
    FlowppConfig(levels=1, channels=4, blocks=1, heads=0),
    TarFlowConfig(patch=1, width=8, maps=2, heads=2),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(config: NetworkConfig, shape=(1, 4, 4), classes: int = 0, size: float = 0.1) -> FlowNetwork:
    """A flow whose every parameter was moved away from its start."""
    with seeded(1):
        data = DataSpec(*shape, classes=tuple("abc"[:classes]))
        found = FlowFamily(FlowConfig(network=config), data).nets["network"].build()
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.add_(size * torch.randn_like(parameter))
    assert isinstance(found, FlowNetwork)
    return found


def encode(net: FlowNetwork, x_BCHW: Tensor, label_B: Tensor) -> Tensor:
    """All latents [B, dims], by the levels' parts: what `decode` takes."""
    x_BCHW, _ = net._unbounded(x_BCHW)
    parts = []
    for level in net.levels:
        for step in level.steps:
            x_BCHW, _ = step(x_BCHW, label_B)
        kept, z = x_BCHW[:, : level.kept], x_BCHW[:, level.kept :]
        mean, log_std = level.prior(kept, label_B)
        parts.append(((z - mean) / log_std.exp()).flatten(1))
        x_BCHW = kept
    return torch.cat(parts, 1)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda c: c.kind)
def test_decoding_inverts_encoding(config: NetworkConfig) -> None:
    net = network(config, (3, 8, 8), classes=3, size=0.05)
    x, label = normal(3, 3, 8, 8).float().sigmoid(), torch.tensor([0, 1, 2])
    with torch.no_grad():
        z = encode(net, x, label)
        assert (z - encode(net, x, (label + 1) % 3)).abs().max() > 1e-2, "the class has no effect"
        torch.testing.assert_close(net.decode(z, label), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda c: c.kind)
def test_log_density_is_that_of_the_full_jacobian(config: NetworkConfig) -> None:
    net = network(config).double()
    x, label = normal(1, 1, 4, 4).sigmoid(), torch.zeros(1, dtype=torch.int64)
    z = encode(net, x, label)
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: encode(net, flat.view(1, 1, 4, 4), label)[0], x.flatten()
    )
    base = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    expected = base + torch.linalg.slogdet(jacobian).logabsdet
    assert abs(torch.linalg.slogdet(jacobian).logabsdet) > 0.1
    assert net.log_density(x, label)[0].item() == pytest.approx(expected.item(), abs=1e-4)


def grid(low: float, high: float, points: int) -> tuple[Tensor, float]:
    axis = torch.linspace(low, high, points)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2


@pytest.mark.parametrize("config", PLANE, ids=lambda c: c.kind)
def test_densities_of_two_pixels_integrate_to_one(config: NetworkConfig) -> None:
    x, area = grid(-30, 30, 601)
    net = network(config, (1, 1, 2), size=0.1)
    with torch.no_grad():
        density = net.log_density(x.view(-1, 1, 1, 2), torch.zeros(len(x), dtype=torch.int64)).exp()
    assert density.sum().item() * area == pytest.approx(1.0, abs=0.01)


def test_the_density_under_a_spline_coupling_integrates_to_one() -> None:
    with seeded(2):
        coupling = SplineCoupling(2, SplineConfig(channels=4, blocks=0, bins=4), 0)
        with torch.no_grad():
            for parameter in coupling.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    x, area = grid(-5, 5, 701)
    with torch.no_grad():
        z, log_det = coupling(x.view(-1, 2, 1, 1), torch.zeros(len(x), dtype=torch.int64))
    density = (torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2, 3)) + log_det).exp()
    assert density.sum().item() * area == pytest.approx(1.0, abs=0.01)
    assert (z[:, 1, 0, 0] - x[:, 1]).abs().max() > 0.1


def test_a_spline_is_monotonic_inverts_and_knows_its_slope() -> None:
    raw, x = 2 * normal(300, 14), 3 * normal(300, seed=1)
    x.requires_grad_()
    y, log_slope = rational_quadratic.forward(x, raw, 2.0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log())
    torch.testing.assert_close(rational_quadratic.inverse(y, raw, 2.0), x, rtol=0, atol=1e-8)
    outside = x.abs() > 2
    assert torch.equal(y[outside], x[outside]) and (slope[~outside] != 1).all()


def test_a_spline_passes_through_its_knots_with_its_slopes() -> None:
    """The definition itself: at knot k, the cumulated softmaxes and the softplus of the parameters."""
    raw = normal(1, 11)
    widths, heights, slopes = raw[0].split([4, 4, 3])
    for knot in range(1, 4):
        x, y = (
            -1 + 2 * (1e-3 * knot + (1 - 4e-3) * torch.softmax(part, 0)[:knot].sum())
            for part in (widths, heights)
        )
        found, log_slope = rational_quadratic.forward(x[None], raw, 1.0)
        torch.testing.assert_close(found[0], y)
        expected = torch.log1p(torch.exp(slopes[knot - 1] + math.log(math.exp(1 - 1e-3) - 1))) + 1e-3
        torch.testing.assert_close(log_slope[0].exp(), expected)


def test_zeros_make_a_spline_the_identity() -> None:
    x = normal(50)
    y, log_slope = rational_quadratic.forward(x, torch.zeros(50, 23, dtype=torch.float64), 3.0)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros(50, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_mixture_has_scipys_distribution_function() -> None:
    raw, x = normal(40, 9), 2 * normal(40, seed=1)
    mixture = Logistics.of(raw)
    weight, mean, scale = (
        mixture.log_weight.exp().numpy(),
        mixture.mean.numpy(),
        mixture.log_scale.exp().numpy(),
    )
    each = stats.logistic(mean, scale)
    cdf, pdf = (weight * each.cdf(x[:, None])).sum(1), (weight * each.pdf(x[:, None])).sum(1)
    logit, log_slope = mixture.logit_and_slope(x)
    np.testing.assert_allclose(logit, np.log(cdf) - np.log1p(-cdf), rtol=1e-8)
    np.testing.assert_allclose(log_slope, np.log(pdf) - np.log(cdf) - np.log1p(-cdf), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(mixture.invert(logit), x, rtol=0, atol=1e-10)


def causal(backwards: bool, classes: int = 4) -> CausalMap:
    with seeded(3):
        found = CausalMap((3, 3, 4), classes, width=8, layers=2, heads=2, backwards=backwards)
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return found.double()


@pytest.mark.parametrize("backwards", [False, True])
@torch.no_grad()
def test_a_map_is_causal(backwards: bool) -> None:
    """A change of one token changes what later ones become, its own change, and nothing before."""
    layer, label = causal(backwards), torch.tensor([1])
    x = normal(1, 3, 3, 4)
    z, _ = layer(x, label)
    for place in range(12):
        moved = x.clone()
        moved[0, :, place // 4, place % 4] += 0.5
        changed = (layer(moved, label)[0] != z)[0].any(0).flatten()
        reached = torch.arange(12) <= place if backwards else torch.arange(12) >= place
        assert torch.equal(changed, reached)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("backwards", [False, True])
@torch.no_grad()
def test_cache_and_jacobi_decode_as_the_sequential_order(backwards: bool, guidance: float) -> None:
    layer, label, z = causal(backwards), torch.tensor([0, 2]), normal(2, 3, 3, 4)
    plain = layer.decode(z, label, Decoding(guidance, order="sequential"))
    for order in ("cache", "jacobi"):
        found = layer.decode(z, label, Decoding(guidance, order=order))
        torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer(plain, label)[0], z) if guidance == 1 else None


@torch.no_grad()
def test_jacobi_needs_no_more_passes_than_tokens_change() -> None:
    """A map that ignores its input is right after one pass; the second pass finds that nothing moves."""
    layer = causal(False)
    layer.out.weight.zero_()
    passes = []
    layer.norm.register_forward_hook(lambda *_: passes.append(1))
    layer.decode(normal(2, 3, 3, 4), torch.tensor([0, 1]), Decoding(order="jacobi"))
    assert len(passes) == 2


@torch.no_grad()
def test_guidance_extrapolates_from_no_class() -> None:
    """By the formula, token by token: x = z exp(a) + m with a and m moved away from those of no class."""
    layer, z, label = causal(False), normal(1, 3, 3, 4), torch.tensor([2])
    found = layer.decode(z, label, Decoding(3.0, rising=True)).flatten(2)[0].T
    z_TC = z.flatten(2)[0].T
    for t in range(12):
        seen = torch.cat([found[:t], torch.zeros(12 - t, 3, dtype=torch.float64)])[None]
        (shift, scale), (free_shift, free_scale) = (
            (part[0, t] for part in layer._given(seen, torch.tensor([which]))) for which in (2, 3)
        )
        weight = 1 + 2 * t / 11
        m = free_shift + weight * (shift - free_shift)
        a = free_scale + weight * (scale - free_scale)
        torch.testing.assert_close(found[t], z_TC[t] * a.exp() + m)


def test_denoising_is_the_posterior_mean_of_a_normal_density() -> None:
    """Under N(0, 1) around 1/2, the expected clean value is known: it moves by std^2 times the distance."""
    net = network(TarFlowConfig(patch=2, width=4, maps=1, layers=1, heads=1), size=0.0)
    y = normal(5, 1, 4, 4).float()
    found = denoised(net, y, torch.zeros(5, dtype=torch.int64), 0.3)
    torch.testing.assert_close(found, y - 0.09 * (y - 0.5))


def test_normal_noise_bounds_the_probability_of_the_levels() -> None:
    """log q(y | k) - log P(k | y) from scipy's densities; P over all levels adds up to one."""
    std, k = 6.4, torch.tensor([0.0, 3, 128, 255]).view(4, 1, 1, 1)
    noise = normal(4, 1, 1, 1).float()
    u, log_ratio = Gaussian(std)(k, noise)
    y = (k + u).flatten().double().numpy()
    levels = np.arange(256) + 0.5
    for row in range(4):
        log_q = stats.norm(levels, std).logpdf(y[row])
        log_p = log_q[int(k[row])] - np.logaddexp.reduce(log_q)
        assert log_ratio[row].item() == pytest.approx(log_q[int(k[row])] - log_p, abs=1e-4)
    assert GaussianConfig(std=0.05).noise_std * 256 == pytest.approx(0.05 * 127.5)


def test_samples_lose_the_noise_unless_told_otherwise() -> None:
    config = FlowConfig(network=TarFlowConfig.tiny(), dequantization=GaussianConfig(std=0.5))
    family = config.build(DataSpec(1, 8, 8))
    with seeded(4):
        net = family.nets["network"].build().eval()
    drawn = [
        family.sample(
            {"ema": net},
            SampleRequest(num=2, options=SamplingConfig(denoise=denoise, temperature=0.2)),
            Progress.at(0),
            SampleRng(0, range(2)),
        )
        for denoise in (True, False)
    ]
    # A fresh network is N(0, 1) in [0, 1): the score draws everything to the middle by std^2 / 4.
    shrunk = drawn[1] * (1 - GaussianConfig(std=0.5).noise_std ** 2)
    inside = drawn[1].abs() < 0.99
    assert (drawn[0] - shrunk)[inside].abs().max() < 2.5 / 127.5 and not torch.equal(*drawn)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"network": TarFlowConfig(patch=3)}, "does not divide the height of 8; use 2"),
        ({"network": TarFlowConfig(patch=8)}, "one token of an image; use 4"),
        ({"network": TarFlowConfig(), "sampling": SamplingConfig(guidance=2)}, "not conditional"),
        ({"sampling": SamplingConfig(guidance=2)}, "glow is not trained for guidance"),
        ({"sampling": SamplingConfig(order="jacobi")}, "has no effect on glow"),
        ({"dequantization": GaussianConfig(), "logit_alpha": 0.05}, "set model.logit_alpha=null"),
        ({"network": FlowppConfig(levels=4)}, "use 3 levels"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict, says: str) -> None:
    found = FlowConfig(**settings).problems(DataSpec(1, 8, 8))
    assert any(says in line for line in found), found


def test_heads_that_do_not_divide_name_the_nearest() -> None:
    for kind in (TarFlowConfig, FlowppConfig):
        with pytest.raises((ConfigError, ValueError), match="the nearest is 9"):
            kind(**{"width" if kind is TarFlowConfig else "channels": 10, "heads": 3})
