"""Flows of latents: the density by the Jacobian of decoding, the scale of latents, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from members import build

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.family import HasLikelihood, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.families.flow.config import FlowConfig
from sfumato.families.flow.family import denoised
from sfumato.families.flow.latent_family import NAME

DATA = DataSpec(1, 8, 8, classes=("a", "b"))
AT = Progress(step=0, images=0, total_images=100, batch=4)
CONFIG = FlowConfig.variants()["latent"]


def rng(rows: int = 4) -> StreamRng:
    return StreamRng((Piece(0, 0, rows),), rows_per_stream=rows, seed=0, images=0, phase="p")


def rows() -> dict[str, torch.Tensor]:
    image = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {"image": image, "label": torch.tensor([0, 1, 1, 0])}


def test_the_loss_is_the_density_of_noisy_latents() -> None:
    """log p(x) = log N(n) - log |det dx/dn| where x is what the noise n decodes to, by autograd."""
    family = CONFIG.build(DATA)
    nets = build(family)
    network, label = nets["network"], torch.tensor([1])
    with torch.no_grad():
        for parameter in network.parameters():  # zeros at the start would make it the identity
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    noise = torch.randn(1, 32, generator=torch.Generator().manual_seed(2))
    x = network.decode(noise, label)
    jacobian = torch.autograd.functional.jacobian(lambda n: network.decode(n, label).flatten(), noise)
    expected = -0.5 * (noise.square() + math.log(2 * math.pi)).sum() - jacobian[:, 0].slogdet().logabsdet
    torch.testing.assert_close(network(x, None, label)[0], expected, rtol=1e-4, atol=1e-3)

    prepared = family.prepare(nets, rows(), AT, rng())
    latent = nets[NAME].encode(rows()["image"]).sample(rng().normal(2, 4, 4))
    torch.testing.assert_close(prepared["image"], latent * network.latent_scale)
    config = CONFIG.model_copy(update={"network": CONFIG.network.model_copy(update={"label_dropout": 0.0})})
    found = config.build(DATA).phases[0].loss({"network": network}, prepared, AT, rng()).loss_B
    noisy = prepared["image"] + 0.3 * rng().normal(2, 4, 4)
    density = network(noisy, None, rows()["label"])
    torch.testing.assert_close(found, -density / (32 * math.log(2)))
    assert not isinstance(family, HasLikelihood), "it is no likelihood of images"


@pytest.mark.parametrize("norm", ["whole", "channel"])
def test_the_first_batch_gives_latents_a_deviation_of_one_and_samples_are_decoded(norm: str) -> None:
    family = CONFIG.model_copy(update={"latent_norm": norm}).build(DATA)
    nets = build(family)
    nets["ema"] = nets["network"]
    family.initialise(nets, rows(), rng())
    scaled = family.prepare(nets, rows(), AT, rng())["image"]
    assert scaled.std().item() == pytest.approx(1.0, rel=1e-2 if norm == "channel" else 1e-4)
    shift = 0.0
    if norm == "channel":
        std, mean = torch.std_mean(scaled, (0, 2, 3))
        torch.testing.assert_close(torch.stack([std, mean]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        shift = nets["network"].latent_shift
        assert shift.shape == (2, 1, 1) and shift.abs().min() > 0
    request = SampleRequest(num=2, options=CONFIG.sampling, conditions={"label": torch.tensor([0, 1])})
    images = family.sample(nets, request, AT, SampleRng(0, range(2)))
    network, label = nets["network"], torch.tensor([0, 1])
    z = SampleRng(0, range(2)).normal(32)
    x = denoised(network, network.decode(z, label), label, 0.3)
    expected = nets[NAME].decode(x / network.latent_scale + shift)
    torch.testing.assert_close(images, expected.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dequantization": FlowConfig().dequantization}, "model.dequantization: latents have no levels"),
        ({"first_stage": None, "latent_scale": 2.0}, "model.latent_scale: has no effect"),
        ({"first_stage": None, "latent_norm": "channel"}, "model.latent_norm: has no effect"),
        ({"latent_scale": 2.0, "latent_norm": "channel"}, "model.latent_scale: 2, but latent_norm=channel"),
        ({"logit_alpha": 0.05}, "model.logit_alpha: latents are not bound to [0, 1]"),
    ],
)
def test_what_does_not_fit_latents_is_refused(changes: dict[str, object], said: str) -> None:
    assert CONFIG.problems(DATA) == []
    assert any(line.startswith(said) for line in CONFIG.model_copy(update=changes).problems(DATA))
