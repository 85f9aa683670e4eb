"""VAR and its tokenizer against naive loops, the published size, and what may see what."""

from __future__ import annotations

import pytest
import torch
from members import build
from torch.nn import functional as F

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.family import SampleRequest
from sfumato.core.first_stage import ScaleTokenizer
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.families.autoregressive.config import AutoregressiveConfig
from sfumato.families.autoregressive.layers.scale_network import ScaleNetwork
from sfumato.families.autoregressive.networks.var import INPUTS
from sfumato.families.autoregressive.sampling import SamplingConfig
from sfumato.families.vae.config import VaeConfig
from sfumato.families.vae.latents.vq_scales import VqScalesLatent

DATA = DataSpec(1, 8, 8, classes=("a", "b"))
AT = Progress(step=0, images=0, total_images=100, batch=4)
CONFIG = AutoregressiveConfig.variants()["var"]
SMALL = {"channels": [4, 8], "norm_groups": 2}
PUBLISHED = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def rng(rows: int = 4) -> StreamRng:
    return StreamRng((Piece(0, 0, rows),), rows_per_stream=rows, seed=0, images=0, phase="p")


def tokenizer():
    config = VaeConfig.model_validate(
        {"family": "vae", "condition": "none", "network": SMALL, "latent": VqScalesLatent.tiny().model_dump()}
    )
    family = config.build(DATA)
    with seeded(1):
        network = family.nets["network"].build()
        torch.nn.init.normal_(network.quantizer.codebook.weight)
    return family, network


def test_codes_are_the_nearest_of_what_the_scales_before_leave_over() -> None:
    """Algorithm 1 of the paper, place by place."""
    _, network = tokenizer()
    assert isinstance(network, ScaleTokenizer)
    f = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    table = network.quantizer.codebook.weight
    rest, total, expected, told = f.clone(), torch.zeros_like(f), [], []
    for number, side in enumerate((1, 2, 4)):
        step = 4 // side
        codes = torch.zeros(2, side, side, dtype=torch.int64)
        for b in range(2):
            for y in range(side):
                for x in range(side):
                    place = rest[b, :, y * step : (y + 1) * step, x * step : (x + 1) * step].mean((1, 2))
                    codes[b, y, x] = (table - place).square().sum(1).argmin()
        large = F.interpolate(table[codes].permute(0, 3, 1, 2), (4, 4), mode="bicubic")
        conv = network.quantizer.convolutions[(0, 0, 1)[number]]  # the middle of two rounds to the first
        h = (large + conv(large)) / 2
        rest, total = rest - h.detach(), total + h
        expected.append(codes.flatten(1))
        if number < 2:
            step = 4 // (1, 2, 4)[number + 1]
            told.append(F.avg_pool2d(total, step).flatten(2).transpose(1, 2))
    codes = network.scale_codes(f)
    assert torch.equal(codes, torch.cat(expected, 1))
    torch.testing.assert_close(network.scale_inputs(codes[:, :5]), torch.cat(told, 1))
    torch.testing.assert_close(network.decode_scales(codes), network.decode(f))
    torch.testing.assert_close(network.decode(f), network.decoder(total).clamp(-1, 1))


def test_the_tokenizers_gradient_goes_straight_through() -> None:
    family, network = tokenizer()
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    made = network(x)
    f = network.encoder(x)
    _, sums = network.quantizer(f)
    torch.testing.assert_close(made.made.image_BCHW, network.decoder(sums[-1]), rtol=1e-4, atol=1e-5)
    terms = [1.25 * (total - f).square().flatten(1).mean(1) for total in sums]
    torch.testing.assert_close(made.loss_B, torch.stack(terms).mean(0))
    loss = family.phases[0].loss({"network": network}, {"image": x}, AT, rng(2)).loss_B
    reconstruction = (x - made.made.image_BCHW).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, reconstruction + made.loss_B)
    loss.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_tokens_see_their_own_scale_and_those_before_it_alone() -> None:
    with seeded(4):
        network = ScaleNetwork(7, 3, (1, 2, 3), 2, width=8, layers=2, heads=2)
        inputs, label = torch.randn(1, 13, 3), torch.tensor([0])
    logits = network(inputs, label)
    assert logits.shape == (1, 14, 7)
    for token, unchanged in ((0, 1), (3, 1), (4, 5), (12, 5)):
        other = inputs.clone()
        other[0, token] += 1.0
        moved = (network(other, label) - logits).abs().amax(2)[0] > 1e-6
        assert not moved[:unchanged].any()
        assert moved[unchanged : 5 if unchanged == 1 else 14].all(), "its own scale sees all of it"
    assert torch.allclose(network(inputs[:, :4], label), logits[:, :5], atol=1e-6)


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    """VAR-d16 and VAR-d20 for ImageNet at 256: 310 M and 600 M."""
    for depth, millions in ((16, 310), (20, 600)):
        with torch.device("meta"):
            network = ScaleNetwork(4096, 32, PUBLISHED, 1_001, width=64 * depth, layers=depth, heads=depth)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_drawn_codes_are_those_of_the_loss_and_guidance_rises_with_the_scale() -> None:
    family = CONFIG.build(DATA)
    nets = build(family)
    nets["ema"] = nets["network"]
    stage = nets["first_stage"]
    seen = []
    decode = stage.decode_scales
    stage.decode_scales = lambda codes: (seen.append(codes), decode(codes))[1]
    options, label = SamplingConfig(guidance=3.0), torch.tensor([0, 1])
    request = SampleRequest(num=2, options=options, conditions={"label": label})
    images = family.sample(nets, request, AT, SampleRng(0, range(2)))
    assert images.shape == (2, 1, 8, 8)
    codes, uniform = seen[0], SampleRng(0, range(2)).uniform(21)
    inputs = stage.scale_inputs(codes[:, :5])
    given, none = nets["network"](inputs, label), nets["network"](inputs, torch.tensor([2, 2]))
    rising = torch.tensor([0.0] + [0.5] * 4 + [1.0] * 16)[None, :, None]
    chances = torch.softmax(given + 2.0 * rising * (given - none), 2)
    expected = (chances.cumsum(2) <= uniform[..., None]).sum(2).clamp(max=15)
    assert torch.equal(codes, expected)
    batch = family.prepare(nets, {"image": images, "label": label}, AT, rng(2))
    assert batch[INPUTS].shape == (2, 20, 4)
    assert torch.equal(batch["codes"], stage.scale_codes(stage.encode(images).mean))


def test_other_first_stages_and_grids_are_refused() -> None:
    plain = AutoregressiveConfig.variants()["maskgit"].first_stage
    (line,) = CONFIG.model_copy(update={"first_stage": plain}).problems(DATA)
    assert "train one with latent.kind=vq_scales" in line
    assert CONFIG.problems(DATA) == []
    scales = VqScalesLatent.tiny().model_copy(update={"scales": (1, 2, 5)})
    vae = VaeConfig.model_validate({"family": "vae", "condition": "none", "network": SMALL})
    (line,) = vae.model_copy(update={"latent": scales}).problems(DATA)
    assert line == "model.latent.scales: the last is 5, but latents have a side of 4; use [1, 2, 4]"
    (line,) = vae.model_copy(update={"latent": scales}).problems(DataSpec(1, 8, 16))
    assert line == "model.latent.kind: vq_scales needs square images, got 16x8"
