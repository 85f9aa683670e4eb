"""EQ-VAE's term against its formula, and zero for an autoencoder that is equivariant."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng, seeded
from sfumato.families.vae.coders import NetworkConfig
from sfumato.families.vae.config import VaeConfig
from sfumato.families.vae.equivariance import LEAST, Change
from sfumato.families.vae.latents.kl import KlLatent

DATA = DataSpec(1, 16, 8)


def at(images: int) -> Progress:
    return Progress(step=0, images=images, total_images=1_000, batch=4)


def rng() -> StreamRng:
    return StreamRng([Piece(0, 0, 4)], rows_per_stream=4, seed=1, images=0, phase="p")


def family(**latent):
    small = NetworkConfig(channels=(4, 8), norm_groups=2)
    settings = KlLatent(channels=2, kl_weight=0.0, **latent)
    return VaeConfig(latent=settings, network=small).build(DATA)


@pytest.mark.parametrize("images", [0, 4, 8, 12])
def test_the_term_is_the_distance_of_the_changed_pictures(images: int) -> None:
    with seeded(1):
        network = family().nets["network"].build()
    rows = {"image": torch.rand(4, 1, 16, 8, generator=torch.Generator().manual_seed(2))}
    plain = family().phases[0].loss({"network": network}, rows, at(images), rng())
    found = family(equivariance=0.5).phases[0].loss({"network": network}, rows, at(images), rng())
    change = Change.at(at(images), (8, 4), 2)
    latent = network.encode(rows["image"]).sample(rng().normal(2, 8, 4))
    turned = torch.rot90(latent, change.turns, (2, 3))
    image = torch.rot90(rows["image"], change.turns, (2, 3))
    sizes = change.size, tuple(2 * side for side in change.size)
    z, x = (
        F.interpolate(each, size, mode="bilinear", antialias=True)
        for each, size in zip((turned, image), sizes, strict=True)
    )
    term = (network.decoder(z) - x).abs().flatten(1).mean(1)
    torch.testing.assert_close(found.loss_B, plain.loss_B + 0.5 * term, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.metrics["equivariance"], term.detach(), rtol=1e-4, atol=1e-6)


def test_changes_turn_all_ways_and_scale_over_the_whole_range() -> None:
    found = [Change.at(at(images), (64, 64), 1) for images in range(0, 4_000, 8)]
    assert {change.turns for change in found} == {0, 1, 2, 3}
    sides = torch.tensor([change.size[0] for change in found]) / 64
    assert LEAST <= sides.min() < 0.3 and 0.95 < sides.max() <= 1
    assert found[3] == Change.at(at(24), (64, 64), 1), "the same for every rank"
