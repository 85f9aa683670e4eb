"""Residual and lookup-free quantisation by brute force, VQ-VAE-2's levels, and the counted use of codes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.rng import seeded
from sfumato.families.vae.code_use import DECAY, CodeUse
from sfumato.families.vae.coders import NetworkConfig
from sfumato.families.vae.config import VaeConfig
from sfumato.families.vae.latents.vq2 import Vq2Autoencoder, Vq2Latent
from sfumato.families.vae.quantizers.codebook import LearnedCodebook
from sfumato.families.vae.quantizers.ema import EmaCodebook
from sfumato.families.vae.quantizers.lookup_free import LookupFree
from sfumato.families.vae.quantizers.residual import ResidualCodebooks


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_residual_codes_are_nearest_to_what_is_left() -> None:
    with seeded(0):
        quantizer = ResidualCodebooks(size=8, depth=3).build(5)
    z = normal(2, 5, 3, 3).requires_grad_()
    out = quantizer(z)
    left, digits, loss = z.detach().movedim(1, -1).reshape(-1, 5), [], 0.0
    for book in quantizer.books:
        vectors = book.codebook.codebook
        nearest = torch.cdist(left, vectors).argmin(1)
        digits.append(nearest)
        left = left - vectors[nearest]
        loss = loss + 1.25 * left.square().view(2, -1).mean(1)
    expected = (digits[0] * 8 + digits[1]) * 8 + digits[2]
    assert torch.equal(out.codes_Bhw.flatten(), expected)
    reached = z.detach() - left.view(2, 3, 3, 5).movedim(-1, 1)
    torch.testing.assert_close(out.straight_through, reached)
    torch.testing.assert_close(quantizer.vectors(out.codes_Bhw), reached)
    torch.testing.assert_close(out.loss_B, loss / 3)
    (gradient,) = torch.autograd.grad((out.straight_through * normal(2, 5, 3, 3, seed=1)).sum(), z)
    torch.testing.assert_close(gradient, normal(2, 5, 3, 3, seed=1))


def test_more_codebooks_leave_less() -> None:
    """With each code's vector at zero or beyond, a further code never takes away; here it helps strictly."""
    with seeded(1):
        quantizer = ResidualCodebooks(size=64, depth=4).build(2)
        with torch.no_grad():
            for depth, book in enumerate(quantizer.books):
                book.codebook.frozen_codebook.mul_(0.5**depth)
    z = normal(1, 2, 16, 16)
    digits = ResidualCodebooks(size=64, depth=4).digits(quantizer(z).codes_Bhw)
    total, errors = torch.zeros_like(z), []
    for book, each in zip(quantizer.books, digits, strict=True):
        total = total + book.vectors(each)
        errors.append((z - total).square().mean().item())
    assert errors == sorted(errors, reverse=True)


def test_lookup_free_codes_are_the_nearest_of_all_signs() -> None:
    quantizer = LookupFree(bits=4).build(4)
    z = normal(2, 4, 3, 3)
    out = quantizer(z)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4))).flip(1)  # bit c is channel c
    nearest = torch.cdist(z.movedim(1, -1).reshape(-1, 4), corners).argmin(1)
    assert torch.equal(out.codes_Bhw.flatten(), nearest)
    torch.testing.assert_close(out.straight_through, corners[nearest].view(2, 3, 3, 4).movedim(-1, 1))
    torch.testing.assert_close(quantizer.vectors(out.codes_Bhw), out.straight_through)


def test_the_entropy_of_one_position_is_that_over_all_codes() -> None:
    """p(code | z) is a softmax of -|z - code|^2 / 2t over all codes; it is a product over channels."""
    config = LookupFree(bits=3, entropy=1.0, commitment=0.0, temperature=0.7)
    z = normal(1, 3, 2, 1)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    z_NC = z[0, :, :, 0].T
    p = torch.softmax(-torch.cdist(z_NC, corners).square() / 0.7 / 2, 1)
    each = -(p * p.log()).sum(1).mean()
    mean_C = (p.mean(0)[:, None] * (corners > 0)).sum(0)
    used = torch.distributions.Bernoulli(mean_C).entropy().sum()
    assert config.build(3)(z).loss_B.item() == pytest.approx((each - used).item(), abs=1e-5)


def test_even_use_of_decided_signs_is_best() -> None:
    config = LookupFree(bits=1, entropy=1.0, commitment=0.0)
    quantizer = config.build(1)
    even = torch.tensor([[-9.0, 9.0], [9.0, -9.0]]).view(1, 1, 2, 2)
    assert quantizer(even).loss_B.item() == pytest.approx(-math.log(2), abs=1e-4)
    assert quantizer(even.abs()).loss_B.item() == pytest.approx(0.0, abs=1e-4)


def test_code_use_is_the_perplexity_of_a_moving_count() -> None:
    use = CodeUse(LearnedCodebook(size=4))
    first, second = torch.tensor([[[0, 0], [1, 1]]]), torch.tensor([[[2, 2], [2, 2]]])
    state = use.state
    for codes in (first, second):
        state = use.advance(state, use.sums(codes))
    count = (1 - DECAY) * (DECAY * torch.tensor([2, 2, 0, 0.0]) + torch.tensor([0, 0, 4.0, 0]))
    share = count[:3] / count.sum()
    metrics = use.metrics(state)
    assert metrics["perplexity"].item() == pytest.approx(
        (-(share * share.log()).sum()).exp().item(), rel=1e-5
    )
    assert metrics["codes_in_use"].item() == 0.75
    assert torch.equal(use.advance(state, {})["code_use"], state["code_use"])


def test_residual_codes_are_counted_by_codebook() -> None:
    use = CodeUse(ResidualCodebooks(size=4, depth=2))
    found = use.sums(torch.tensor([[[1 * 4 + 3, 1 * 4 + 0]]]))["code_use"]
    assert found.tolist() == [[0, 2, 0, 0], [1, 0, 0, 1]]


def two_levels(quantizer) -> Vq2Autoencoder:
    with seeded(2):
        network = NetworkConfig(channels=(4, 8), norm_groups=2)
        return Vq2Autoencoder(network, Vq2Latent(channels=3, quantizer=quantizer), DataSpec(1, 8, 8)).eval()


@torch.no_grad()
@pytest.mark.parametrize("quantizer", [EmaCodebook(size=8), LearnedCodebook(size=8), LookupFree(bits=3)])
def test_both_levels_rebuild_the_image_from_their_latents(quantizer) -> None:
    network, x = two_levels(quantizer), normal(2, 1, 8, 8)
    coded = network(x)
    top, bottom = coded.quantized
    assert top.codes_Bhw.shape == (2, 2, 2) and bottom.codes_Bhw.shape == (2, 4, 4)
    latent = network.encode(x).mean
    assert latent.shape == (2, 6, 4, 4)
    torch.testing.assert_close(network.decode(latent), coded.made.image_BCHW.clamp(-1, 1))


@torch.no_grad()
def test_the_bottom_level_knows_the_tops_codes() -> None:
    network, x = two_levels(LearnedCodebook(size=8)), normal(1, 1, 8, 8)
    _, _, before = network._encode(x)
    network.top.codebook.frozen_codebook.mul_(-1)
    assert not torch.allclose(network._encode(x)[2], before)


def test_what_does_not_fit_is_said() -> None:
    (found,) = VaeConfig(latent=Vq2Latent(), condition="none").problems(DataSpec(1, 6, 8))
    assert "the height of 6 leaves a grid of 3, which latent.kind=vq2 halves; use a height of 8" in found
    with pytest.raises(ValueError, match="2\\^31 combinations; use 3"):
        ResidualCodebooks(size=1024, depth=4)
