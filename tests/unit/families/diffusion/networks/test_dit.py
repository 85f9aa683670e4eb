"""The diffusion transformer: what it is before training, and each part against a reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from pydantic import ValidationError
from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.core.rng import SampleRng, seeded
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.networks.dit import DiT, DiTBlock, DiTConfig, positions, sinusoids, unpatch

DATA = DataSpec(1, 8, 12, ("a", "b"))
CONFIG = DiTConfig(kind="dit", patch=2, width=16, depth=2, heads=2)


def build(config: DiTConfig = CONFIG, data: DataSpec = DATA, *, conditional: bool = True) -> DiT:
    with seeded(0):
        return config.build(data, conditional=conditional)


def awake(net: nn.Module) -> nn.Module:
    """Weights as after training: nothing is zero."""
    with seeded(1), torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    return net


def test_a_fresh_block_is_the_identity_and_a_fresh_network_answers_zero() -> None:
    net = build()
    tokens = torch.randn(3, 24, 16)
    for block in net.blocks:
        assert torch.equal(block(tokens, torch.randn(3, 16)), tokens)
    assert not net(torch.randn(3, 1, 8, 12), torch.tensor(5.0), torch.tensor([0, 1, 2]))[0].any()


def test_a_block_is_attention_and_mlp_modulated_and_gated() -> None:
    width, heads, rows, tokens = 16, 2, 3, 5
    block = awake(DiTBlock(width, heads, 4.0))
    assert isinstance(block, DiTBlock)
    x, c = torch.randn(rows, tokens, width), torch.randn(rows, width)
    attention = nn.MultiheadAttention(width, heads, batch_first=True)
    attention.in_proj_weight.data, attention.in_proj_bias.data = block.qkv.weight, block.qkv.bias
    attention.out_proj.weight.data, attention.out_proj.bias.data = block.project.weight, block.project.bias
    norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
        part[:, None] for part in (c @ block.modulation.weight.T + block.modulation.bias).split(width, dim=1)
    )
    h = norm(x) * (1 + scale_a) + shift_a
    y = x + gate_a * attention(h, h, h, need_weights=False)[0]
    h = norm(y) * (1 + scale_m) + shift_m
    first, _, last = block.mlp
    assert isinstance(first, nn.Linear)
    hidden = h @ first.weight.T + first.bias
    gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    expected = y + gate_m * (gelu @ last.weight.T + last.bias)
    torch.testing.assert_close(block(x, c), expected, rtol=1e-4, atol=1e-5)


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    found = positions(3, 5, 16).numpy()
    assert found.shape == (15, 16)
    for row in range(3):
        for column in range(5):
            expected = [
                function(coordinate * 10_000 ** (-i / 4))
                for coordinate in (column, row)
                for function in (math.sin, math.cos)
                for i in range(4)
            ]
            np.testing.assert_allclose(found[row * 5 + column], expected, atol=1e-6)


def test_time_is_embedded_as_in_diffusers() -> None:
    t = torch.tensor([0.0, 0.3, 12.5, 999.0])
    theirs = get_timestep_embedding(t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoids(t, 64), theirs, rtol=1e-5, atol=1e-5)


def test_patches_go_back_where_they_came_from() -> None:
    image = torch.randn(2, 3, 4, 6)
    tokens = torch.stack(
        [
            image[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].permute(0, 2, 3, 1).flatten(1)
            for row in range(2)
            for column in range(3)
        ],
        dim=1,
    )
    assert torch.equal(unpatch(tokens, 2, 3, 2), image)


def test_a_patch_sees_all_others_and_knows_its_place() -> None:
    net = awake(build(conditional=False))
    x, t = torch.randn(1, 1, 8, 12, requires_grad=True), torch.tensor(3.0)
    net(x, t)[0][0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad != 0).all()
    flipped = net(x.detach().flip(3), t)[0].flip(3)
    assert not torch.allclose(flipped, net(x.detach(), t)[0], atol=1e-3)


def test_time_and_class_change_the_answer_and_the_last_class_stands_for_none() -> None:
    net = awake(build())
    x = torch.randn(1, 1, 8, 12).expand(4, -1, -1, -1)
    answers = net(x, torch.tensor([1.0, 1.0, 1.0, 9.0]), torch.tensor([0, 1, 2, 0]))[0]
    assert len({round(row.sum().item(), 4) for row in answers}) == 4
    assert net.embed_label.num_embeddings == DATA.num_classes + 1
    with pytest.raises(AssertionError, match="labels"):
        net(x, torch.tensor(1.0), None)


def test_a_scalar_time_is_the_same_for_all_rows() -> None:
    net = awake(build())
    x, labels = torch.randn(3, 1, 8, 12), torch.tensor([0, 1, 2])
    torch.testing.assert_close(
        net(x, torch.tensor(4.0), labels)[0], net(x, torch.full((3,), 4.0), labels)[0], rtol=1e-5, atol=1e-6
    )


def test_it_computes_under_bfloat16_autocast() -> None:
    net = awake(build())
    x = SampleRng(0, range(2)).normal(*DATA.shape)
    t, labels = torch.tensor([0.0, 10.0]), torch.tensor([0, 2])
    exact = predict(net, x, t, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predict(net, x, t, labels)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).std() < 0.05 * exact.std()


def test_every_size_setting_changes_the_network() -> None:
    changes: list[dict[str, object]] = [{}, {"patch": 4}, {"width": 32}, {"depth": 1}, {"mlp_ratio": 2.0}]
    sizes = [
        sum(p.numel() for p in build(CONFIG.model_copy(update=change)).parameters()) for change in changes
    ]
    assert len(set(sizes)) == len(sizes)
    x = torch.randn(1, 1, 8, 12)
    two, four = (
        awake(build(CONFIG.model_copy(update={"heads": heads}), conditional=False))(x, torch.tensor(1.0))[0]
        for heads in (2, 4)
    )
    assert not torch.allclose(two, four)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"width": 30}, "the nearest is 32"),
        ({"heads": 5}, "heads: 5 does not divide width=128; the nearest is 4"),
        ({"patch": 0}, "greater than or equal to 1"),
    ],
)
def test_networks_that_cannot_be_built(parts: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DiTConfig.model_validate({"kind": "dit", **parts})


def test_sides_that_patches_cannot_tile() -> None:
    config = DiTConfig(kind="dit", patch=8)
    (problem,) = config.problems(DataSpec(1, 28, 32))
    assert "model.network.patch: 8 does not divide the image height of 28" in problem
    assert "use a height of 32, or a patch of 7" in problem
    assert config.model_copy(update={"patch": 7}).problems(DataSpec(1, 28, 28)) == []
