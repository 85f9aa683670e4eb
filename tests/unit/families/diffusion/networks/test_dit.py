"""The diffusion transformer: what it is before training, and each part against a reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from pydantic import ValidationError
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.core.batch import DataSpec
from sfumato.core.rng import SampleRng, seeded
from sfumato.families.diffusion.layers.patches import positions, unpatch
from sfumato.families.diffusion.layers.time_embedding import sinusoids
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.networks.dit import DiTConfig
from sfumato.families.diffusion.networks.dit.blocks import DiTBlock
from sfumato.families.diffusion.networks.dit.network import DiT
from sfumato.layers.rope import grid_angles

DATA = DataSpec(1, 8, 12, ("a", "b"))
CONFIG = DiTConfig(kind="dit", patch=2, width=16, depth=2, heads=2)


def build(config: DiTConfig = CONFIG, data: DataSpec = DATA, *, conditional: bool = True) -> DiT:
    with seeded(0):
        net = config.build(data, conditional=conditional)
    assert isinstance(net, DiT)
    return net


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


LIGHTNING = {"mlp": "swiglu", "norm": "rms", "qk_norm": True, "rope": True}


def test_a_block_of_lightningdit_is_the_authors() -> None:
    """RMSNorm, SwiGLU, normed and turned queries and keys, written out with complex numbers and softmax."""
    width, heads, rows, grid = 16, 2, 3, (2, 3)
    tokens, each = grid[0] * grid[1], width // heads
    block = DiTBlock(width, heads, 4.0, mlp="swiglu", norm="rms", qk_norm=True)
    awake(block)
    x, c = torch.randn(rows, tokens, width), torch.randn(rows, width)
    angles = grid_angles(*grid, each, first=0)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.modulation(c)[:, None].split(width, dim=2)

    def rms(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return value * (value.square().mean(-1, keepdim=True) + 1e-6) ** -0.5 * weight

    def turn(value: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous())
        speed = 10_000 ** -(torch.arange(each // 4) / (each // 4))
        place = torch.stack(
            [torch.cat([row * speed, column * speed]) for row in range(grid[0]) for column in range(grid[1])]
        )
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(place), place)).flatten(-2)

    h = rms(x, block.norm_a.weight) * (1 + scale_a) + shift_a
    q, k, v = (part.unflatten(2, (heads, each)).transpose(1, 2) for part in block.qkv(h).split(width, dim=2))
    q, k = turn(rms(q, block.norm_q.weight)), turn(rms(k, block.norm_k.weight))
    mixed = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(each), dim=-1) @ v
    y = x + gate_a * block.project(mixed.transpose(1, 2).flatten(2))
    h = rms(y, block.norm_m.weight) * (1 + scale_m) + shift_m
    hidden = int(2 / 3 * 4 * width)
    gate, value = h @ block.mlp.both.weight[:hidden].T, h @ block.mlp.both.weight[hidden:].T
    gate, value = gate + block.mlp.both.bias[:hidden], value + block.mlp.both.bias[hidden:]
    swish = gate / (1 + torch.exp(-gate)) * value
    expected = y + gate_m * (swish @ block.mlp.out.weight.T + block.mlp.out.bias)
    torch.testing.assert_close(block(x, c, angles), expected, rtol=1e-4, atol=1e-5)


def test_registers_are_seen_and_left_out_of_the_answer() -> None:
    net = awake(build(CONFIG.model_copy(update={"registers": 3, "rope": True}), conditional=False))
    x, t = torch.randn(2, 1, 8, 12), torch.tensor(1.0)
    before = net(x, t)[0]
    assert before.shape == x.shape
    assert net.angles_TP.shape == (3 + 24, 4) and not net.angles_TP[:3].any()
    with torch.no_grad():
        net.registers_RD.mul_(3)
    assert not torch.allclose(net(x, t)[0], before)


@pytest.mark.parametrize(
    ("settings", "data", "millions"),
    [
        # LightningDiT-XL/1 on the latents of VA-VAE (Yao et al. 2025, table 5)
        ({"patch": 1, "width": 1152, "depth": 28, "heads": 16, **LIGHTNING}, (32, 16, 16), 675),
        # JiT-B/16, JiT-L/16 (Li & He 2025, table 7)
        (
            {"patch": 16, "width": 768, "depth": 12, "heads": 12, "bottleneck": 128, **LIGHTNING},
            (3, 256, 256),
            131,
        ),
        (
            {"patch": 16, "width": 1024, "depth": 24, "heads": 16, "bottleneck": 128, **LIGHTNING},
            (3, 256, 256),
            459,
        ),
        # DiT-XL/2, which SiT-XL/2 is (Peebles & Xie 2023, table 4; Ma et al. 2024)
        ({"patch": 2, "width": 1152, "depth": 28, "heads": 16}, (4, 32, 32), 675),
    ],
)
def test_published_sizes(settings: dict[str, object], data: tuple[int, int, int], millions: int) -> None:
    with torch.device("meta"):
        config = DiTConfig.model_validate({"kind": "dit", **settings})
        net = config.build(DataSpec(*data, tuple(str(i) for i in range(1000))), conditional=True)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)


def test_every_option_trains_along_a_direction() -> None:
    """Objectives such as MeanFlow differentiate the network forwards: all options have to."""
    net = awake(
        build(CONFIG.model_copy(update={**LIGHTNING, "registers": 1, "bottleneck": 2}), conditional=False)
    )
    x, v, t = torch.randn(2, 1, 8, 12), torch.randn(2, 1, 8, 12), torch.tensor(0.5)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # as the objectives do
        _, found = torch.func.jvp(lambda y: net(y, t)[0], (x,), (v,))
        step = 1e-2
        expected = (net(x + step * v, t)[0] - net(x - step * v, t)[0]) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_heads_that_cannot_be_turned() -> None:
    with pytest.raises(ValidationError, match="rope: turns groups of 4 channels"):
        DiTConfig.model_validate({"kind": "dit", "width": 24, "heads": 4, "rope": True})


def test_routed_tokens_pass_by_the_middle_blocks_in_training() -> None:
    """Written out, with the route that the network draws: what leaves is as before the skipped block."""
    settings = {"route": 0.5, "route_blocks": [1, 2], "depth": 3, "rope": True, "registers": 2}
    net = awake(build(DiTConfig.model_validate({**CONFIG.model_dump(), **settings}), conditional=False))
    x, t = torch.randn(3, 1, 8, 12), torch.tensor([1.0, 2.0, 3.0])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in net.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    net.train()
    with seeded(5):
        answer = net(x, t)[0]
    with seeded(5):
        stays = torch.rand(3, 24).argsort(dim=1)[:, :12].sort(dim=1).values + 2
    (_, before), (entering, leaving), (after, _) = seen
    assert entering.shape == (3, 2 + 12, 16)
    assert torch.equal(entering[:, :2], before[:, :2])  # registers always stay
    for row in range(3):
        assert torch.equal(entering[row, 2:], before[row, stays[row]])
        assert torch.equal(after[row, stays[row]], leaving[row, 2:])
        gone = [token for token in range(2, 26) if token not in stays[row].tolist()]
        assert torch.equal(after[row, gone], before[row, gone])
        alone = net.blocks[1](
            entering[row : row + 1],
            torch.nn.functional.silu(net.embed_time(sinusoids(t, 256)))[row : row + 1],
            net.angles_TP[[0, 1, *stays[row].tolist()]],
        )
        torch.testing.assert_close(alone[0], leaving[row], rtol=1e-4, atol=1e-5)
    seen.clear()
    net.eval()
    assert not torch.equal(net(x, t)[0], answer) and seen[1][0].shape[1] == 26
    assert net.train() is net and not CONFIG.couples_rows()


def test_routes_that_lead_nowhere() -> None:
    with pytest.raises(ValidationError, match="leave after block 2 and join after -2"):
        DiTConfig.model_validate({**CONFIG.model_dump(), "route": 0.5})
    routed = DiTConfig.model_validate({**CONFIG.model_dump(), "route": 0.5, "route_blocks": [0, 2]})
    assert routed.couples_rows() and routed.blocks_of_tokens() == 0
