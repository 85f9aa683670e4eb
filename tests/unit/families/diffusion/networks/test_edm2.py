"""EDM2's network: the authors' sizes, a block written out, magnitudes that stay, uncertainty."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng, seeded
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.layers.magnitude import Block, Weights
from sfumato.families.diffusion.networks.edm2 import Edm2Config

CLASSES = tuple(str(number) for number in range(1000))


@pytest.mark.parametrize(("width", "millions"), [(128, 125), (192, 280), (256, 498)])
def test_sizes_are_the_authors(width: int, millions: int) -> None:
    """Table 2 of Karras et al. 2024: XS, S and M."""
    with torch.device("meta"):
        net = Edm2Config(width=width).build(DataSpec(4, 64, 64, CLASSES), conditional=True, uncertain=True)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)


def unit(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    return x / (x.square().mean(dim=dims, keepdim=True).sqrt() + 1e-4)


@pytest.mark.parametrize("decodes", [False, True])
def test_a_block_is_the_authors(decodes: bool) -> None:
    with seeded(0):
        block = Block(6, 8, 5, decodes=decodes, head_dim=4, side="down").eval()
        x, embedding = torch.randn(2, 6, 8, 8), torch.randn(2, 5)
    block.gain.data.fill_(0.7)

    def conv(layer: Weights | None, value: torch.Tensor) -> torch.Tensor:
        assert layer is not None
        w = unit(layer.weight, (1, 2, 3)) / math.sqrt(layer.weight[0].numel())
        return F.conv2d(value, w, padding=w.shape[-1] // 2)

    def silu(value: torch.Tensor) -> torch.Tensor:
        return value * torch.sigmoid(value) / 0.596

    def half(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (0.7 * a + 0.3 * b) / math.sqrt(0.7**2 + 0.3**2)

    h = x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    if not decodes:
        h = unit(conv(block.skip, h), (1,))
    y = conv(block.first, silu(h))
    weight = unit(block.embed.weight, (1,)) / math.sqrt(5) * 0.7
    y = conv(block.second, silu(y * (embedding @ weight.T + 1)[:, :, None, None]))
    h = half(conv(block.skip, h) if decodes else h, y)
    q, k, v = unit(conv(block.qkv, h).reshape(2, 2, 4, 3, 16), (2,)).unbind(3)
    chance = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(4)).softmax(dim=3)
    y = torch.einsum("nhqk,nhck->nhcq", chance, v).reshape(2, 8, 4, 4)
    h = half(h, conv(block.project, y))
    torch.testing.assert_close(block(x, embedding), h, rtol=1e-3, atol=1e-3)


def test_magnitudes_stay_through_the_network() -> None:
    sizes: list[float] = []
    with seeded(0):
        net = Edm2Config(width=16, levels=(1, 2), blocks=3, attention=(1,), head_dim=16).build(
            DataSpec(3, 16, 16, ("a", "b")), conditional=True, uncertain=True
        )
        x = torch.randn(8, 3, 16, 16)
    for block in [*net.encoder, *net.decoder]:  # type: ignore[misc]
        block.register_forward_hook(lambda module, inputs, output: sizes.append(output.std().item()))
    answer = net(x, torch.linspace(-1, 1, 8), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
    assert len(sizes) == 18 and all(0.6 < size < 1.4 for size in sizes)
    assert not answer[0].any() and answer[1].shape == (8,)  # the last gain is zero at first
    assert len(net.eval()(x, torch.tensor(0.0), torch.zeros(8, dtype=torch.long))) == 1


def test_uncertainty_weights_the_error_and_is_least_where_it_is_right() -> None:
    content = {"family": "diffusion", "network": Edm2Config.tiny().model_dump(), "condition": "none"}
    data, losses = DataSpec(1, 8, 8), {}
    for uncertain in (False, True):
        config = DiffusionConfig.model_validate(
            {**content, "objective": {"kind": "edm", "uncertainty": uncertain}}
        )
        family: Any = config.build(data)
        with seeded(0):
            net = family.nets["network"].build().train()
        with seeded(1):
            image = torch.rand(4, 1, 8, 8) * 2 - 1
        rng = StreamRng([Piece(0, 0, 4)], rows_per_stream=4, seed=0, images=0, phase="denoise")
        losses[uncertain] = family.phases[0].loss({"network": net}, {"image": image}, Progress.at(0), rng)
        seen = net
    error = losses[False].loss_B
    torch.testing.assert_close(losses[True].metrics["error"], error.detach())
    told: list[torch.Tensor] = []
    seen.error.register_forward_hook(lambda module, inputs, output: told.append(output.flatten()))
    rng = StreamRng([Piece(0, 0, 4)], rows_per_stream=4, seed=0, images=0, phase="denoise")
    again = family.phases[0].loss({"network": seen}, {"image": image}, Progress.at(0), rng)
    u = told[0]
    torch.testing.assert_close(again.loss_B, error / u.exp() + u)
    best = error.detach().log()  # e / exp(u) + u is least at exp(u) = e
    for step in (-0.1, 0.1):
        assert (1 + best < error.detach() / (best + step).exp() + best + step).all()
    problems = DiffusionConfig.model_validate(
        {"family": "diffusion", "objective": {"kind": "edm", "uncertainty": True}}
    ).problems(data)
    assert any("unet tells none; use network.kind=edm2" in problem for problem in problems)


def test_rows_are_brought_back_to_unit_magnitude() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(2, 5, 3))
    before = net[0].bias.detach().clone()
    config = OptimizerConfig(name="sgd", unit_rows=("*.weight",))
    optimizer = config.build(dict(net.named_parameters()))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    directions = F.normalize(net[1].weight.detach().flatten(1), dim=1)
    optimizer.step()
    for weight in (net[0].weight, net[1].weight):
        torch.testing.assert_close(weight.square().flatten(1).mean(1), torch.ones(len(weight)))
    torch.testing.assert_close(F.normalize(net[1].weight.detach().flatten(1), dim=1), directions)
    assert torch.equal(net[0].bias, before) and config.needs_whole_matrices
    with pytest.raises(ConfigError, match="no matrix matches nothing"):
        OptimizerConfig(unit_rows=("nothing",)).build(dict(net.named_parameters()))
