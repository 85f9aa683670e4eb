"""The autoencoders against closed forms, torch.distributions and brute force."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import distributions as dist

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.family import Family
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.families.vae.coders import NetworkConfig
from sfumato.families.vae.config import VaeConfig
from sfumato.families.vae.latents.gaussian import GaussianLatent, GaussianNetwork
from sfumato.families.vae.latents.kl import KlLatent
from sfumato.families.vae.latents.vq import VqLatent
from sfumato.families.vae.likelihoods.bernoulli import BernoulliConfig
from sfumato.families.vae.likelihoods.logistic import LogisticConfig
from sfumato.families.vae.posterior import Posterior
from sfumato.families.vae.quantizers.codebook import LearnedCodebook
from sfumato.families.vae.quantizers.fsq import ScalarQuantizer

DATA = DataSpec(channels=1, height=8, width=8)
SMALL = NetworkConfig(channels=(4, 8), norm_groups=2)
PROGRESS = Progress(step=0, images=0, total_images=1_000, batch=100)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(rows: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(256, (rows, *DATA.shape), generator=generator) / 127.5 - 1


def built(family: Family) -> Any:
    with seeded(0, "test"):
        return family.nets["network"].build().eval()


def stream(phase: str, rows: int = 4) -> StreamRng:
    return StreamRng([Piece(0, 0, rows)], rows_per_stream=rows, seed=1, images=0, phase=phase)


def test_kl_and_density_ratio_are_those_of_torch_distributions() -> None:
    posterior = Posterior(normal(3, 5), normal(3, 5, seed=1))
    q, p = dist.Normal(posterior.mean, posterior.std), dist.Normal(torch.zeros(3, 5), torch.ones(3, 5))
    torch.testing.assert_close(posterior.kl(), dist.kl_divergence(q, p))
    noise = normal(3, 5, seed=2)
    z = posterior.sample(noise)
    torch.testing.assert_close(posterior.log_ratio(noise), (p.log_prob(z) - q.log_prob(z)).sum(dim=1))


def test_bernoulli_likelihood_is_that_of_torch_distributions() -> None:
    config, output = BernoulliConfig(binarization="threshold"), normal(4, *DATA.shape)
    x = config.target(images(), stream("p"))
    assert set(x.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(x > 0, images() > 0)
    expected = dist.Bernoulli(logits=output).log_prob((x + 1) / 2).flatten(1).sum(dim=1)
    torch.testing.assert_close(config.build(1).log_prob(x, output), expected)


def test_dynamic_binarisation_is_white_as_often_as_the_pixel_is_bright() -> None:
    grey = torch.full((20_000, 1, 1, 1), 0.4)
    rng = StreamRng([Piece(0, 0, 20_000)], rows_per_stream=20_000, seed=1, images=0, phase="p")
    assert BernoulliConfig().target(grey, rng).mean().item() == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(("weight", "free"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.3)])
def test_the_loss_is_the_weighted_elbo(weight: float, free: float) -> None:
    latent = GaussianLatent(dim=3, beta=weight, free_bits=free, likelihood=LogisticConfig())
    family = VaeConfig(latent=latent, network=SMALL).build(DATA)
    network = built(family)
    assert isinstance(network, GaussianNetwork)
    x = images()
    out = family.phases[0].loss({"network": network}, {"image": x}, PROGRESS, stream("elbo"))
    posterior = network.encode(x, None)
    z = posterior.mean + posterior.std * stream("elbo").normal(3)
    q = dist.Normal(posterior.mean, posterior.std)
    kl = dist.kl_divergence(q, dist.Normal(0.0, 1.0)).clamp(min=free).sum(dim=1)
    expected = (weight * kl - network.log_prob(x, z, None)) / 64
    torch.testing.assert_close(out.loss_B, expected)


def test_the_weight_of_the_kl_term_rises_with_the_images() -> None:
    latent = GaussianLatent(beta=2, warmup_images=1_000)
    family = VaeConfig(latent=latent).build(DATA)
    at = [Progress(0, seen, 10_000, 100) for seen in (0, 400, 900, 5_000)]
    assert [family.kl_weight(progress) for progress in at] == pytest.approx([0.2, 1.0, 2.0, 2.0])


@torch.no_grad()
def test_more_importance_samples_give_a_tighter_bound() -> None:
    """E[ELBO] <= E[IW-5] <= E[IW-50] (Burda et al. 2016, theorem 1), and one sample is the plain ELBO."""
    network, bounds = None, []
    for samples in (1, 5, 50):
        latent = GaussianLatent(dim=2, likelihood=BernoulliConfig(), importance_samples=samples)
        family = VaeConfig(latent=latent, network=SMALL).build(DATA)
        network = network or built(family)
        rows = {"image": images(1).expand(64, -1, -1, -1)}
        rng = SampleRng(0, range(64))
        bounds.append(family.bits_per_dim({"ema": network}, rows, PROGRESS, rng).mean().item())
    assert bounds[0] > bounds[1] > bounds[2]


@torch.no_grad()
def test_the_importance_weighted_bound_reaches_the_likelihood() -> None:
    """With one latent number the integral over it can be done by quadrature.

    400 draws leave a Monte Carlo error of a few hundredths of a nat.
    """
    latent = GaussianLatent(
        dim=1, likelihood=BernoulliConfig(binarization="threshold"), importance_samples=400
    )
    family = VaeConfig(latent=latent, network=SMALL).build(DATA)
    network = built(family)
    x = latent.likelihood.target(images(2), stream("p", 2))
    z = torch.linspace(-8, 8, 2_001)
    log_joint = torch.stack(
        [network.log_prob(x[:1].expand(len(z), -1, -1, -1), z[:, None], None) + dist.Normal(0, 1).log_prob(z)]
    )
    exact = torch.logsumexp(log_joint, dim=1) + math.log(16 / 2_000)
    found = family.bits_per_dim({"ema": network}, {"image": images(2)}, PROGRESS, SampleRng(0, range(2)))[0]
    assert found.item() * 64 * math.log(2) == pytest.approx(-exact.item(), abs=0.1)


def test_codes_are_the_nearest_by_brute_force_and_gradients_go_straight_through() -> None:
    with seeded(0, "test"):
        quantizer = LearnedCodebook(size=32, commitment=0.25).build(6)
    z = normal(2, 6, 4, 4).requires_grad_()
    out = quantizer(z)
    book = quantizer.codebook.codebook  # [codes, channels]
    flat = z.permute(0, 2, 3, 1).reshape(-1, 6)
    nearest = ((flat[:, None] - book[None]) ** 2).sum(dim=2).argmin(dim=1)
    assert torch.equal(out.codes_Bhw.flatten(), nearest)
    chosen = book[nearest].view(2, 4, 4, 6).permute(0, 3, 1, 2)
    torch.testing.assert_close(out.straight_through, chosen)
    torch.testing.assert_close(quantizer.vectors(out.codes_Bhw), chosen)
    torch.testing.assert_close(out.loss_B, 1.25 * ((z - chosen) ** 2).flatten(1).mean(dim=1))
    weights = normal(2, 6, 4, 4, seed=5)
    (gradient,) = torch.autograd.grad((out.straight_through * weights).sum(), z)
    torch.testing.assert_close(gradient, weights)


def test_the_codebook_learns_from_its_own_term_and_the_encoder_from_the_commitment() -> None:
    with seeded(0, "test"):
        quantizer = LearnedCodebook(size=8, commitment=0.5).build(3)
    z = normal(1, 3, 2, 2).requires_grad_()
    out = quantizer(z)
    out.loss_B.sum().backward()
    chosen = quantizer.vectors(out.codes_Bhw).detach()
    torch.testing.assert_close(z.grad, 0.5 * 2 * (z - chosen).detach() / z.numel())
    assert quantizer.codebook.code_transform.weight.grad.abs().sum() > 0


def test_scalar_quantisation_has_as_many_codes_as_products_of_levels_and_inverts_them() -> None:
    config = ScalarQuantizer(levels=(5, 3))
    with seeded(0, "test"):
        quantizer = config.build(2)
    codes = torch.arange(config.codes).view(1, 3, 5)
    vectors = quantizer.vectors(codes)
    assert len({tuple(v) for v in vectors.flatten(2)[0].T.tolist()}) == 15
    z = normal(4, 2, 8, 8) * 3
    out = quantizer(z)
    torch.testing.assert_close(quantizer.vectors(out.codes_Bhw), out.straight_through)
    assert out.codes_Bhw.unique().numel() == 15


@pytest.mark.parametrize(
    "latent", [KlLatent(channels=2), VqLatent(channels=4, quantizer=LearnedCodebook(size=16))]
)
def test_a_first_stage_learns_one_batch_by_heart(latent: KlLatent | VqLatent) -> None:
    """Autoencoders of eight smooth images go below a tenth of the images' own deviation."""
    family = VaeConfig(latent=latent, network=SMALL).build(DATA)
    with seeded(0, "test"):
        network = family.nets["network"].build()
    grid = torch.linspace(-1, 1, 8)
    x = torch.stack([torch.tanh(3 * (grid[:, None] * math.cos(a) + grid * math.sin(a))) for a in range(8)])
    batch = {"image": x[:, None]}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(150):
        rng = StreamRng([Piece(0, 0, 8)], rows_per_stream=8, seed=1, images=step, phase="p")
        loss = family.phases[0].loss({"network": network}, batch, PROGRESS, rng).loss_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        error = (
            (family.reconstruct({"ema": network}, batch, PROGRESS, stream("p", 8)) - batch["image"])
            .pow(2)
            .mean()
        )
    assert error < 0.1 * x.var()
