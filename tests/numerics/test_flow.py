"""Flows against autograd's Jacobian, quadrature and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.families.flow.bijection import ActNorm, InvertibleConv, fitting, squeeze, unsqueeze
from sfumato.families.flow.config import FlowConfig
from sfumato.families.flow.dequantization import from_unit, to_levels
from sfumato.families.flow.dequantization.uniform import UniformConfig
from sfumato.families.flow.dequantization.variational import Variational, VariationalConfig
from sfumato.families.flow.family import FlowFamily
from sfumato.families.flow.network import FlowNetwork
from sfumato.families.flow.networks.glow import GlowConfig
from sfumato.families.flow.networks.realnvp import RealNvpConfig

NETWORKS = [GlowConfig(levels=2, steps=2, channels=6), RealNvpConfig(levels=2, channels=6, blocks=1)]


def network(config: GlowConfig | RealNvpConfig, shape=(1, 4, 4), classes: int = 0, alpha=None) -> FlowNetwork:
    """A flow whose every parameter was moved away from its start, where couplings do nothing."""
    with seeded(1):
        found = (
            FlowFamily(
                FlowConfig(network=config, logit_alpha=alpha),
                DataSpec(*shape, classes=tuple("abc"[:classes])),
            )
            .nets["network"]
            .build()
        )
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert isinstance(found, FlowNetwork)
    return found


def labels(rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.int64)


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


@pytest.mark.parametrize("alpha", [None, 0.05])
@pytest.mark.parametrize("config", NETWORKS, ids=lambda c: c.kind)
def test_decoding_inverts_encoding(config: GlowConfig | RealNvpConfig, alpha: float | None) -> None:
    net = network(config, (3, 8, 8), classes=3, alpha=alpha)
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        z = encode(net, x, label)
        assert (z - encode(net, x, (label + 1) % 3)).abs().max() > 1e-2, "the class has no effect"
        torch.testing.assert_close(net.decode(z, label), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [None, 0.05])
@pytest.mark.parametrize("config", NETWORKS, ids=lambda c: c.kind)
def test_log_density_is_that_of_the_full_jacobian(
    config: GlowConfig | RealNvpConfig, alpha: float | None
) -> None:
    net = network(config, alpha=alpha).double()
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = encode(net, x, labels(1))
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: encode(net, flat.view(1, 1, 4, 4), labels(1))[0], x.flatten()
    )
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    expected = normal + torch.linalg.slogdet(jacobian).logabsdet
    found = net.log_density(x, labels(1))[0]
    assert found.item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_density_integrates_to_one() -> None:
    """Two pixels, so that the whole plane can be covered by a grid."""
    net = network(RealNvpConfig(levels=1, channels=4, blocks=0), (1, 1, 2))
    grid = torch.linspace(-6, 7, 521)
    x = torch.cartesian_prod(grid, grid).view(-1, 1, 1, 2)
    with torch.no_grad():
        density = net.log_density(x, labels(len(x))).exp()
    assert density.sum().item() * (grid[1] - grid[0]).item() ** 2 == pytest.approx(1.0, abs=0.01)


def test_actnorm_fits_the_rows_it_sees() -> None:
    x = 3 + 2 * torch.randn(16, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    layer = ActNorm(4)
    with fitting(layer):
        y, _ = layer(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(4), rtol=1e-4, atol=0)
    torch.testing.assert_close(layer(x)[0], y)
    torch.testing.assert_close(layer.inverse(y), x, rtol=1e-5, atol=1e-5)
    assert not layer.fit


def test_invertible_convolution_starts_as_a_rotation_and_counts_its_determinant() -> None:
    with seeded(3):
        layer = InvertibleConv(6)
    torch.testing.assert_close(layer.weight() @ layer.weight().T, torch.eye(6), rtol=0, atol=1e-5)
    with torch.no_grad():
        layer.log_s += torch.linspace(-1, 1, 6)
        layer.lower += 0.3
    x = torch.randn(2, 6, 3, 5)
    y, log_det = layer(x)
    expected = 15 * torch.linalg.slogdet(layer.weight()).logabsdet
    torch.testing.assert_close(log_det, expected.expand(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.inverse(y), x, rtol=1e-4, atol=1e-4)


def test_squeeze_keeps_every_value() -> None:
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    y = squeeze(x)
    assert y.shape == (2, 12, 2, 3)
    assert y[0, :4, 0, 0].tolist() == [x[0, 0, 0, 0], x[0, 0, 0, 1], x[0, 0, 1, 0], x[0, 0, 1, 1]]
    assert torch.equal(unsqueeze(y), x)


def test_levels_and_images() -> None:
    k = torch.arange(256.0)
    images = k / 127.5 - 1
    assert torch.equal(to_levels(images), k)
    for u in (0.0, 0.5, 0.999):
        assert torch.equal(from_unit((k + u) / 256), images)
    assert from_unit(torch.tensor([-math.inf, -3.0, 9.0, math.inf])).tolist() == [-1, -1, 1, 1]
    assert from_unit(torch.tensor([math.nan])).isnan().all()  # which evaluation refuses, and says so


def test_uniform_dequantisation_of_a_known_density() -> None:
    """Under one normal density a pixel's bound is an integral that quadrature knows."""
    net = FlowNetwork(
        RealNvpConfig(levels=1, channels=2, blocks=0).build_levels((1, 2, 2), 0),
        FlowFamily(FlowConfig(), DataSpec(1, 4, 4)).nets["network"].build().dequantizer,
        (1, 2, 2),
        None,
    )
    k = torch.full((20_000, 1, 2, 2), 40.0)
    u = torch.rand(20_000, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        found = net(k, u, labels(len(k)))
    x = (40 + torch.linspace(0, 1, 10_001, dtype=torch.float64)) / 256 - 0.5
    expected = 4 * (torch.distributions.Normal(0.0, 1.0).log_prob(x).mean().item() - math.log(256))
    assert found.mean().item() == pytest.approx(expected, abs=1e-4)


def test_variational_noise_has_the_density_it_says() -> None:
    """q integrates to one over the unit square: E_q [1 / q] is the area of what q covers."""
    with seeded(5):
        noise = Variational(VariationalConfig(steps=2, channels=4), (1, 1, 2))
        with torch.no_grad():
            for parameter in noise.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        eps = torch.randn(60_000, 1, 1, 2)
    with torch.no_grad():
        u, log_q = noise(torch.full((60_000, 1, 1, 2), 99.0), eps)
    assert u.min() >= 0 and u.max() <= 1
    weights = (-log_q).exp()
    spread = weights.std().item() / math.sqrt(len(weights))
    assert spread < 0.02
    assert weights.mean().item() == pytest.approx(1.0, abs=5 * spread + 0.01)
    # A moment under the uniform distribution, by importance weights.
    assert (weights * u[:, 0, 0, 0]).mean().item() == pytest.approx(0.5, abs=0.03)


def test_the_slope_of_variational_noise_is_autograds() -> None:
    with seeded(6):
        noise = Variational(VariationalConfig(steps=3, channels=4), (1, 2, 2)).double()
        with torch.no_grad():
            for parameter in noise.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        eps = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    k = torch.full((1, 1, 2, 2), 7.0, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: noise(k, flat.view(1, 1, 2, 2))[0].flatten(), eps.flatten()
    )
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum()
    expected = normal - torch.linalg.slogdet(jacobian).logabsdet
    assert noise(k, eps)[1].item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("dequantization", [UniformConfig(), VariationalConfig(steps=2, channels=4)])
def test_bits_per_dim_starts_near_that_of_noise(dequantization: UniformConfig | VariationalConfig) -> None:
    """Initialised by data that fill the levels evenly, a flow says about 8 bits and a normal's excess."""
    data = DataSpec(1, 8, 8)
    family = FlowConfig(network=NETWORKS[0], dequantization=dequantization).build(data)
    with seeded(7):
        net = family.nets["network"].build()
    image = torch.randint(256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(8)) / 127.5 - 1
    rng = StreamRng((Piece(0, 0, 64),), rows_per_stream=64, seed=0, images=0, phase="a")
    with torch.no_grad():
        before = family.bits_per_dim({"ema": net}, {"image": image}, Progress.at(0), rng).mean().item()
        family.initialise({"network": net}, {"image": image}, rng)
        bits = family.bits_per_dim({"ema": net}, {"image": image}, Progress.at(0), rng).mean().item()
    # The excess of a normal over a uniform density: 0.5 log2(2 pi e / 12) bits.
    assert bits == pytest.approx(8 + 0.5 * math.log2(2 * math.pi * math.e / 12), abs=0.1)
    assert bits < before


def test_initialisation_depends_on_the_rows_alone() -> None:
    family = FlowConfig(network=NETWORKS[0]).build(DataSpec(1, 8, 8))
    image = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(9)) * 2 - 1
    found = []
    for _ in range(2):
        with seeded(10):
            net: nn.Module = family.nets["network"].build()
        rng = StreamRng((Piece(0, 0, 16),), rows_per_stream=16, seed=0, images=0, phase="a")
        with torch.no_grad():
            family.initialise({"network": net}, {"image": image}, rng)
        found.append(net.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_temperature_zero_is_the_mode_of_the_prior() -> None:
    config = FlowConfig(network=NETWORKS[0])
    family = config.build(DataSpec(1, 8, 8))
    with seeded(11):
        net = family.nets["network"].build().eval()
    from sfumato.core.family import SampleRequest

    cold = config.sampling.model_copy(update={"temperature": 0.0})
    with torch.no_grad():
        same = family.sample(
            {"ema": net},
            SampleRequest(num=2, options=cold),
            Progress.at(0),
            SampleRng(0, range(2)),
        )
    assert torch.equal(same[0], same[1])


@pytest.mark.parametrize(
    ("network_config", "side", "says"),
    [
        (GlowConfig(levels=3), 28, "use 2 levels"),
        (GlowConfig(levels=1), 7, "use a side of 8"),
        (RealNvpConfig(levels=4), 8, "use 3 levels"),
        (RealNvpConfig(levels=1), 1, "use a side of 2"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(network_config, side: int, says: str) -> None:
    config = FlowConfig(network=network_config)
    found = config.problems(DataSpec(1, side, side))
    assert len(found) == 2
    assert says in found[0]
