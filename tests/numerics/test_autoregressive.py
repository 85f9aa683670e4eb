"""Autoregressive models: causality by perturbation, caches against none, exact likelihoods by enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError

from sfumato.core.batch import DataSpec
from sfumato.core.family import SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, seeded
from sfumato.errors import ConfigError
from sfumato.families.autoregressive.config import AutoregressiveConfig
from sfumato.families.autoregressive.drawing.decoding import draw_codes
from sfumato.families.autoregressive.drawing.draws import draw
from sfumato.families.autoregressive.drawing.memory import StaticMemory
from sfumato.families.autoregressive.drawing.raster import draw_image
from sfumato.families.autoregressive.drawing.reader import Ask
from sfumato.families.autoregressive.layers.code_network import CodeNetwork
from sfumato.families.autoregressive.layers.gated import PixelCnnNetwork
from sfumato.families.autoregressive.networks.pixelcnn import PixelCnnConfig
from sfumato.families.autoregressive.networks.transformer import TransformerConfig
from sfumato.families.autoregressive.outputs.categorical import CategoricalConfig
from sfumato.families.autoregressive.outputs.logistic import LogisticConfig
from sfumato.families.autoregressive.sampling import SamplingConfig


def pixelcnn(channels: int = 1, outputs: int = 3, kernel: int = 3, layers: int = 3) -> PixelCnnNetwork:
    with seeded(0, "test"):
        return PixelCnnNetwork(
            channels, outputs, width=6, layers=layers, kernel=kernel, head_width=5, classes=2
        ).eval()


def transformer(codes: int = 7, length: int = 6) -> CodeNetwork:
    with seeded(0, "test"):
        network = CodeNetwork(codes, length, 3, width=8, layers=2, heads=2).eval()
        for parameter in network.parameters():  # so that every path counts
            torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize(("kernel", "layers"), [(3, 1), (3, 3), (5, 2)])
def test_a_pixel_depends_on_those_before_it_and_no_other(kernel: int, layers: int) -> None:
    height, width = 5, 6
    network = pixelcnn(channels=2, kernel=kernel, layers=layers)
    x = torch.randn(1, 2, height, width, requires_grad=True)
    label = torch.tensor([1])
    reached = torch.zeros(height * width, height * width, dtype=torch.bool)
    out = network(x, label)
    for place, (i, j) in enumerate(itertools.product(range(height), range(width))):
        (gradient,) = torch.autograd.grad(out[0, :, i, j].square().sum(), x, retain_graph=True)
        reached[place] = gradient[0].abs().sum(dim=0).flatten() > 0
    assert not reached.triu().any(), "a pixel sees itself or one after it"
    # No blind spot: with enough layers all pixels before it within reach are seen.
    if layers == 3:
        assert all(reached[place, place - width] for place in range(width, height * width))
        assert all(
            reached[place, place - width + 1]
            for place in range(width, height * width - 1)
            if (place + 1) % width
        )


@torch.no_grad()
def test_changing_a_pixel_changes_only_what_comes_after_it() -> None:
    network = pixelcnn()
    x, label = torch.randn(1, 1, 4, 4), torch.tensor([0])
    before = network(x, label).flatten(2)
    for place in range(16):
        changed = x.clone().flatten(2)
        changed[..., place] += 1
        after = network(changed.view_as(x), label).flatten(2)
        assert torch.equal(after[..., : place + 1], before[..., : place + 1])


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "layers"), [(3, 1), (3, 3), (5, 3)])
def test_drawing_by_memory_sees_what_the_whole_network_sees(kernel: int, layers: int) -> None:
    network = pixelcnn(channels=2, kernel=kernel, layers=layers)
    label = torch.tensor([0, 1, 1])
    values = torch.randn(3, 2, 5, 4)
    seen = torch.zeros(3, 3, 5, 4)

    def force(parameters: torch.Tensor, row: int, column: int) -> torch.Tensor:
        seen[:, :, row, column] = parameters[:, :, 0, 0]
        return values[:, :, row : row + 1, column : column + 1]

    drawn = draw_image(network, (2, 5, 4), 3, label, force)
    assert torch.equal(drawn, values)
    torch.testing.assert_close(seen, network(values, label), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_likelihood_of_all_small_images_sums_to_one() -> None:
    """2x3 pixels of 3 levels: 729 images."""
    config = AutoregressiveConfig(
        network=PixelCnnConfig(width=4, layers=2, head_width=4, output=CategoricalConfig(levels=3))
    )
    data = DataSpec(channels=1, height=2, width=3)
    family = config.build(data)
    with seeded(0, "test"):
        network = family.nets["network"].build()
    bytes_ = torch.tensor(list(itertools.product((0, 120, 255), repeat=6))).view(-1, 1, 2, 3)
    rng = SampleRng(0, range(len(bytes_)))
    bits = family.bits_per_dim({"ema": network}, {"image": bytes_ / 127.5 - 1}, Progress.at(0), rng)
    assert torch.exp2(-6 * bits).sum().item() == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_draws_follow_the_likelihood() -> None:
    """1x2 pixels of 2 levels: the frequencies of the four images against their probabilities."""
    config = AutoregressiveConfig(
        network=PixelCnnConfig(
            width=4, layers=2, head_width=4, output=CategoricalConfig(levels=2, binarization="threshold")
        )
    )
    data = DataSpec(channels=1, height=1, width=2)
    family = config.build(data)
    with seeded(0, "test"):
        network = family.nets["network"].build()
    for parameter in network.parameters():
        parameter.mul_(2)
    request = SampleRequest(num=4_000, options=config.sampling)
    drawn = family.sample({"ema": network}, request, Progress.at(0), SampleRng(3, range(4_000)))
    for image in itertools.product((-1.0, 1.0), repeat=2):
        x = torch.tensor(image).view(1, 1, 1, 2)
        expected = torch.exp2(
            -2 * family.bits_per_dim({"ema": network}, {"image": x}, Progress.at(0), SampleRng(0, range(1)))
        )
        assert (drawn == x).flatten(1).all(dim=1).float().mean().item() == pytest.approx(
            expected.item(), abs=0.03
        )


@pytest.mark.parametrize("levels", [2, 16, 17, 256])
def test_levels_are_equal_parts_of_the_bytes(levels: int) -> None:
    config = CategoricalConfig(levels=levels, binarization="threshold" if levels == 2 else "dynamic")
    image = (torch.arange(256) / 127.5 - 1).view(1, 1, 16, 16)
    found = config.to_levels(image, SampleRng(0, range(1))).flatten()
    assert found.tolist() == [value * levels // 256 for value in range(256)]


@torch.no_grad()
def test_the_cache_computes_what_the_whole_sequence_does() -> None:
    network = transformer()
    codes, label = torch.randint(7, (3, 5)), torch.tensor([0, 1, 2])
    whole = network(codes, label)
    memory = StaticMemory(len(codes), 6)
    parts = [network(codes[:, :t], label, memory) for t in range(6)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_code_depends_on_its_class_and_those_before_it() -> None:
    network = transformer()
    codes, label = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([1])
    before = network(codes, label)
    for t in range(5):
        changed = codes.clone()
        changed[0, t] = 6
        after = network(changed, label)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.allclose(after[:, t + 1], before[:, t + 1])
    assert not torch.allclose(network(codes, torch.tensor([0]))[:, 0], before[:, 0])


@torch.no_grad()
def test_guided_draws_without_a_cache() -> None:
    """The plain way: the whole sequence again for each code, the two models one after the other."""
    network, weight = transformer(), 2.5
    label, uniform = torch.tensor([0, 1, 1, 0]), torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    ask = Ask(label, 6, 2, True, SamplingConfig(guidance=weight), label.new_zeros(4, 0))
    found = draw_codes(network, ask, uniform)
    codes = torch.zeros(4, 0, dtype=torch.int64)
    for t in range(6):
        conditional = network(codes, label)[:, -1]
        unconditional = network(codes, torch.full_like(label, 2))[:, -1]
        logits = unconditional + weight * (conditional - unconditional)
        codes = torch.cat([codes, draw(logits, uniform[:, t])[:, None]], dim=1)
    assert torch.equal(found, codes)


def test_draws_by_inversion() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]])).expand(5, -1)
    uniform = torch.tensor([0.05, 0.15, 0.5, 0.95, 0.99999994])
    assert draw(logits, uniform).tolist() == [0, 1, 2, 3, 3]
    # The two likeliest have 3/7 and 4/7.
    assert draw(logits, uniform, top_k=2).tolist() == [2, 2, 3, 3, 3]
    # At half the temperature the probabilities are squared: 1, 4, 9, 16 of 30.
    assert draw(logits, torch.tensor([0.03, 0.1, 0.4, 0.5, 0.9]), temperature=0.5).tolist() == [0, 1, 2, 3, 3]


def test_settings_that_have_no_effect_or_do_not_fit_are_refused() -> None:
    grey, colour = DataSpec(1, 8, 8, ("a",)), DataSpec(3, 8, 8)
    categorical = AutoregressiveConfig(network=PixelCnnConfig(output=CategoricalConfig()))
    assert "grey images" in categorical.problems(colour)[0]
    top = AutoregressiveConfig(
        network=PixelCnnConfig(output=LogisticConfig()), sampling=SamplingConfig(top_k=3)
    )
    assert "top_k" in top.problems(grey)[0]
    guided = AutoregressiveConfig(sampling=SamplingConfig(guidance=2))
    assert "set it to 1" in guided.problems(grey)[0]
    for option in ({"cache": "paged"}, {"guidance_schedule": "linear"}):
        (line,) = AutoregressiveConfig(sampling=SamplingConfig(**option)).problems(grey)
        assert line.startswith(f"model.sampling.{next(iter(option))}: ") and "no effect on" in line


def test_a_binarisation_of_many_levels_is_refused() -> None:
    with pytest.raises(ValidationError, match="threshold has no effect on levels=16; leave it out"):
        CategoricalConfig(levels=16, binarization="threshold")
    for fine in (CategoricalConfig(levels=16), CategoricalConfig(levels=2, binarization="threshold")):
        assert CategoricalConfig.model_validate(fine.model_dump()) == fine


@torch.no_grad()
def test_a_transformer_that_dropped_no_labels_asks_for_them() -> None:
    """The token of no class is then as it was built: images drawn from it would be noise."""
    data = DataSpec(1, 8, 8, ("a", "b", "c"))
    tiny = AutoregressiveConfig.variants()["transformer"]
    assert isinstance(tiny.network, TransformerConfig)
    options = SamplingConfig()
    for dropout, condition in ((0.0, "class"), (0.1, "class"), (0.0, "none")):
        network = tiny.network.model_copy(update={"label_dropout": dropout})
        family = tiny.model_copy(
            update={"network": network, "condition": condition, "sampling": options}
        ).build(data)
        with seeded(0):
            nets = {
                "ema": family.nets["network"].build(),  # type: ignore[union-attr]
                "first_stage": family.nets["first_stage"].build(),  # type: ignore[union-attr]
            }
        plain = SampleRequest(num=2, options=options)
        if dropout or condition == "none":
            assert family.sample(nets, plain, Progress.at(0), SampleRng(0, range(2))).isfinite().all()
            continue
        with pytest.raises(ConfigError, match="labels: required"):
            family.sample(nets, plain, Progress.at(0), SampleRng(0, range(2)))
        asked = SampleRequest(num=2, conditions={"label": torch.tensor([0, 2])}, options=options)
        assert family.sample(nets, asked, Progress.at(0), SampleRng(0, range(2))).isfinite().all()
