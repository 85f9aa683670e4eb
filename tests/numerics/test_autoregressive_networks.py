"""PixelCNN++, PixelRNN and the Image Transformer: causality, a double loop, blocks by hand, sums to one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.family import SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, seeded
from sfumato.errors import ConfigError
from sfumato.families.autoregressive.config import AutoregressiveConfig
from sfumato.families.autoregressive.layers.local_attention import everything, in_blocks, in_rows
from sfumato.families.autoregressive.layers.lstm_layers import DiagonalBiLstm, RowLstm
from sfumato.families.autoregressive.networks.image_transformer import ImageTransformerConfig
from sfumato.families.autoregressive.networks.pixelcnn import PixelCnnConfig
from sfumato.families.autoregressive.networks.pixelcnnpp import PixelCnnPpConfig
from sfumato.families.autoregressive.networks.pixelrnn import PixelRnnConfig
from sfumato.families.autoregressive.outputs.categorical import CategoricalConfig
from sfumato.families.autoregressive.pixel_family import PixelNetworkConfig
from sfumato.families.autoregressive.sampling import SamplingConfig

NETWORKS = {
    "pixelcnnpp": PixelCnnPpConfig(width=4, blocks=1, levels=3),
    "row": PixelRnnConfig(width=3, layers=2, lstm="row", head_width=16),
    "diagonal": PixelRnnConfig(width=3, layers=2, lstm="diagonal", head_width=16),
    "full": ImageTransformerConfig(width=8, layers=2, heads=2, attention="full"),
    "local1d": ImageTransformerConfig(width=8, layers=1, heads=2, block=8, memory=5),
    "local2d": ImageTransformerConfig(
        width=8, layers=1, heads=2, attention="local2d", block2d=(2, 4), memory2d=(1, 2)
    ),
}
SIDE = 8


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def built(config: PixelNetworkConfig, channels: int = 1, side: int = SIDE) -> nn.Module:
    with seeded(0, "test"):
        network = config.network(DataSpec(channels, side, side), 2).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def order(config: PixelNetworkConfig, side: int = SIDE) -> Tensor:
    if isinstance(config, ImageTransformerConfig):
        return config.layout(DataSpec(1, side, side)).order_T
    return torch.arange(side * side)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_changing_a_pixel_changes_only_what_comes_after_it(name: str) -> None:
    config = NETWORKS[name]
    network, label = built(config, channels=2).double(), torch.tensor([1])
    x = normal(1, 2, SIDE, SIDE)
    before = network(x, label).flatten(2)[0]
    rank, near = order(config).argsort(), []
    for place in range(SIDE * SIDE):
        changed = x.clone().flatten(2)
        changed[..., place] += 1
        moved = ((network(changed.view_as(x), label).flatten(2)[0] - before).abs() > 1e-9).any(0)
        assert not moved[rank <= rank[place]].any()
        if place % SIDE < SIDE - 1 and rank[place + 1] == rank[place] + 1:
            near.append(moved[place + 1].item())
    assert sum(near) > 0.9 * len(near), "the next pixel does not see it"


@torch.no_grad()
@pytest.mark.parametrize("name", ["pixelcnnpp", "diagonal", "full"])
def test_the_last_pixel_sees_all_others(name: str) -> None:
    """No blind spot; a Row LSTM and local attention have one by design."""
    deep = {"blocks": 3} if name == "pixelcnnpp" else {}
    network, label = built(NETWORKS[name].model_copy(update=deep)).double(), torch.tensor([0])
    x = normal(1, 1, SIDE, SIDE).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(network(x, label)[..., -1, -1].square().sum(), x)
    assert (gradient.flatten()[:-1] != 0).all() and gradient.flatten()[-1] == 0


def gates(total: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    o, f, i, g = total.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@torch.no_grad()
def test_a_row_lstm_is_the_double_loop() -> None:
    with seeded(1):
        layer, x = RowLstm(3), torch.randn(1, 3, 4, 5)
    given, state = layer.given, layer.state.weight
    h, c = torch.zeros(5, 7, 3), torch.zeros(5, 7, 3)  # a border of zeros above and on both sides
    for i in range(4):
        for j in range(5):
            left = x[0, :, i, j - 1] if j else torch.zeros(3)
            total = given.bias + given.weight[:, :, 0, 0] @ left + given.weight[:, :, 0, 1] @ x[0, :, i, j]
            for offset in range(3):
                total = total + state[:, :, offset] @ h[i, j + offset]
            h[i + 1, j + 1], c[i + 1, j + 1] = gates(total, c[i, j + 1])
    torch.testing.assert_close(layer(x)[0], h[1:, 1:6].permute(2, 0, 1))


@torch.no_grad()
def test_a_diagonal_bilstm_is_the_double_loop() -> None:
    with seeded(2):
        layer, x = DiagonalBiLstm(2), torch.randn(1, 2, 4, 3)

    def one(part: nn.Module, image: Tensor) -> Tensor:
        given, state = part.given, part.state.weight
        h, c = torch.zeros(5, 4, 2), torch.zeros(5, 4, 2)
        for i in range(4):
            for j in range(3):
                total = given.weight[:, :, 0, 0] @ image[:, i, j] + given.bias
                total = total + state[:, :, 0] @ h[i, j + 1] + state[:, :, 1] @ h[i + 1, j]
                # The cell's own state comes along the row.
                h[i + 1, j + 1], c[i + 1, j + 1] = gates(total, c[i + 1, j])
        return h[1:, 1:].permute(2, 0, 1)

    expected = one(layer.right, x[0])
    other = one(layer.left, x[0].flip(2)).flip(2)
    expected[:, 1:] += other[:, :-1]
    torch.testing.assert_close(layer(x)[0], expected)


def test_local_attention_sees_its_block_and_its_memory() -> None:
    one = in_rows(4, 4, 4, 3).sees_TT
    assert one[9].nonzero().flatten().tolist() == [5, 6, 7, 8, 9]
    two = in_blocks(4, 4, (2, 2), (1, 1))
    assert two.order_T.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    # Pixel 10 is the first of the last block: rows from 1, columns from 1, and drawn before it.
    seen = two.order_T[two.sees_TT[12]].tolist()
    assert sorted(seen) == [5, 6, 7, 9, 10, 13]
    assert everything(2, 2).sees_TT.tolist() == torch.ones(4, 4).tril().bool().tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", ["full", "local1d", "local2d", "row"])
def test_drawing_sees_what_the_whole_network_sees(name: str) -> None:
    config = NETWORKS[name]
    network, label = built(config, channels=2), torch.tensor([0, 1])
    values, seen = normal(2, 2, SIDE, SIDE).float(), {}

    def force(parameters: Tensor, row: int, column: int) -> Tensor:
        seen[row, column] = parameters[:, :, 0, 0]
        return values[:, :, row : row + 1, column : column + 1]

    drawn = config.draw_image(network, (2, SIDE, SIDE), 2, label, force)
    assert torch.equal(drawn, values)
    expected = network(values, label)
    for (row, column), parameters in seen.items():
        torch.testing.assert_close(parameters, expected[:, :, row, column], rtol=1e-4, atol=1e-5)
    assert [row * SIDE + column for row, column in seen] == order(config).tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", ["pixelcnnpp", "row", "diagonal", "local1d", "local2d"])
def test_the_likelihood_of_all_small_images_sums_to_one(name: str) -> None:
    """2x4 pixels of 2 levels: 256 images."""
    levels = CategoricalConfig(levels=2, binarization="threshold")
    config = NETWORKS[name].model_copy(
        update={"output": levels, **({"levels": 2} if name[-1] == "p" else {})}
    )
    family = AutoregressiveConfig(network=config).build(DataSpec(1, 2, 4))
    with seeded(3):
        network = family.nets["network"].build()
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    images = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8))).view(-1, 1, 2, 4)
    rng = SampleRng(0, range(len(images)))
    bits = family.bits_per_dim({"ema": network}, {"image": images}, Progress.at(0), rng)
    assert torch.exp2(-8 * bits).sum().item() == pytest.approx(1, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("keep", [0.5, 0.3, 1.0])
def test_an_image_is_completed_from_its_first_part(keep: float) -> None:
    """The known part stays, and the rest is what the model draws after it: another prefix changes it."""
    network = PixelCnnConfig(width=4, layers=2, head_width=4, output=CategoricalConfig(levels=2))
    config = AutoregressiveConfig(network=network, completion=True)
    data = DataSpec(1, 4, 4)
    family = config.build(data)
    with seeded(4):
        nets = {"ema": family.nets["network"].build()}
        for parameter in nets["ema"].parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    prefix = torch.randint(2, (64, 1, 4, 4), generator=torch.Generator().manual_seed(5)) * 2.0 - 1

    def drawn(given: Tensor) -> Tensor:
        request = SampleRequest(num=64, options=SamplingConfig(keep=keep), conditions={"prefix": given})
        return family.sample(nets, request, Progress.at(0), SampleRng(0, range(64))).flatten(1)

    kept = round(keep * 16)
    found, other = drawn(prefix), drawn(-prefix)
    assert torch.equal(found[:, :kept], prefix.flatten(1)[:, :kept])
    if kept < 16:
        assert not torch.equal(found[:, kept:], other[:, kept:])
        changed = prefix.clone().flatten(1)
        changed[:, kept:] *= -1  # what is not kept has no say
        assert torch.equal(drawn(changed.view_as(prefix)), found)
    request = SampleRequest(num=64, options=SamplingConfig(keep=keep))
    with pytest.raises(ConfigError, match="needs images to complete"):
        family.sample(nets, request, Progress.at(0), SampleRng(0, range(64)))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"network": PixelCnnPpConfig(levels=3)}, "multiple of 4, got 6; use 2"),
        ({"network": ImageTransformerConfig(block=8)}, "does not divide the image's pixels, 36; use 9"),
        ({"network": ImageTransformerConfig(attention="local2d")}, "the image's height, 6; use 3"),
        ({"network": ImageTransformerConfig(attention="local2d"), "completion": True}, "raster order"),
        ({"sampling": SamplingConfig(keep=0.5)}, "needs model.completion=true"),
        ({"sampling": SamplingConfig(min_p=0.1)}, "have no effect on network.output.kind=logistic"),
        ({"sampling": SamplingConfig(decoding="jacobi")}, "has no effect on network.kind=pixelcnn"),
        ({"sampling": SamplingConfig(decoding="speculative")}, "needs model.draft"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict, says: str) -> None:
    found = AutoregressiveConfig(**settings).problems(DataSpec(1, 6, 6))
    assert any(says in line for line in found), found


def test_published_sizes() -> None:
    """PixelCNN++ of the paper and its code: 160 channels, 5 blocks, 3 levels, 10 logistics."""
    with torch.device("meta"):
        network = PixelCnnPpConfig(width=160, blocks=5, levels=3).network(DataSpec(3, 32, 32), 0)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert math.isclose(count, 53e6, rel_tol=0.05)
