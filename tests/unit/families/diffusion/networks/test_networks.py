"""Networks of texts: published sizes on the meta device, and what they see of a text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from repository import PIPELINES

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec
from sfumato.core.rng import seeded
from sfumato.families.diffusion.networks import NETWORKS, TextNetworkConfig
from sfumato.text.states import States, TextShape

SD = DataSpec(4, 64, 64)
SD3 = DataSpec(16, 128, 128)
XL = {
    "channels": (320, 640, 1280),
    "attention": (1, 2),
    "depth": (1, 2, 10),
    "head_dim": 64,
    "linear": True,
    "pooled_with_size": (1024, 1024),
}
PUBLISHED: dict[str, tuple[str, dict[str, Any], DataSpec, TextShape, float]] = {
    "stable diffusion 1": (
        "unet_text",
        {"channels": (320, 640, 1280, 1280), "heads": 8},
        SD,
        TextShape(77, 768, 768),
        859.52e6,
    ),
    "stable diffusion 2": (
        "unet_text",
        {"channels": (320, 640, 1280, 1280), "head_dim": 64, "linear": True},
        SD,
        TextShape(77, 1024, 1024),
        865.91e6,
    ),
    "sdxl": ("unet_text", XL, DataSpec(4, 128, 128), TextShape(77, 2048, 1280), 2567.46e6),
    "pixart": (
        "pixart",
        {"heads": 16, "head_dim": 72, "depth": 28},
        DataSpec(4, 32, 32),
        TextShape(120, 4096, 4096),
        0.61e9,
    ),
    "stable diffusion 3 medium": (
        "mmdit",
        {"heads": 24, "head_dim": 64, "depth": 24, "qk_norm": False, "largest": 192},
        SD3,
        TextShape(333, 4096, 2048),
        2.03e9,
    ),
    "stable diffusion 3.5 medium": (
        "mmdit",
        {"heads": 24, "head_dim": 64, "depth": 24, "dual": 13, "largest": 384},
        SD3,
        TextShape(333, 4096, 2048),
        2.24e9,
    ),
    "stable diffusion 3.5 large": (
        "mmdit",
        {"heads": 38, "head_dim": 64, "depth": 38, "largest": 192},
        SD3,
        TextShape(333, 4096, 2048),
        8.06e9,
    ),
    "flux": (
        "flux",
        {"heads": 24, "head_dim": 128, "depth": 19, "single_depth": 38},
        SD3,
        TextShape(512, 4096, 768),
        11.89e9,
    ),
}
TEXT = TextShape(tokens=6, width=12, pooled=10)
IMAGES = DataSpec(2, 8, 8)


def made(kind: str, settings: dict[str, Any]) -> TextNetworkConfig:
    config = NETWORKS.make(kind, **settings)
    assert isinstance(config, TextNetworkConfig)
    return config


def tiny(kind: str) -> TextNetworkConfig:
    config = NETWORKS.find(kind).tiny()
    assert isinstance(config, TextNetworkConfig)
    return config


KINDS = [
    name
    for name, kind in NETWORKS.all().items()
    if issubclass(kind, TextNetworkConfig) and not kind.of_pretrained
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    kind, settings, data, text, millions = PUBLISHED[name]
    config = made(kind, settings)
    assert config.problems(data) == config.text_problems(text) == []
    with torch.device("meta"):
        network = config.build_for_text(data, text)
    assert sum(part.numel() for part in network.parameters()) == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("sd1", "stable diffusion 1"),
        ("pixart", "pixart"),
        ("sd3_medium", "stable diffusion 3 medium"),
    ],
)
def test_recipes_have_the_published_networks(recipe: str, name: str) -> None:
    kind, settings, *_ = PUBLISHED[name]
    model = recipes.load(PIPELINES / "captions" / f"{recipe}.yaml").model
    assert model.network == made(kind, settings)  # type: ignore[attr-defined]


def text_of(rows: int, seed: int = 0) -> States:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(TEXT.tokens) < torch.arange(2, rows + 2)[:, None]
    states = torch.randn(rows, TEXT.tokens, TEXT.width, generator=generator)
    return States(states, mask, torch.randn(rows, TEXT.pooled, generator=generator))


def network_of(kind: str, data: DataSpec = IMAGES, outputs: int = 1) -> torch.nn.Module:
    with seeded(0, kind):
        network = tiny(kind).build_for_text(data, TEXT, outputs=outputs)
        for weight in network.parameters():  # gates start at zero
            torch.nn.init.normal_(weight, std=0.2)
    return network.eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_row_sees_its_own_text_and_time(kind: str) -> None:
    network, x, text = network_of(kind), torch.randn(3, *IMAGES.shape), text_of(3)
    t = torch.tensor([10.0, 500.0, 900.0])
    (whole,) = network(x, t, text, return_dict=False)
    assert whole.shape == x.shape
    for row in range(3):
        own = States(*(part[row : row + 1] for part in text))
        (alone,) = network(x[row : row + 1], t[row], own, return_dict=False)
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=1e-4, atol=1e-4)
    other = text._replace(states=text_of(3, seed=1).states)
    assert not torch.allclose(network(x, t, other)[0], whole, atol=1e-3)
    assert not torch.allclose(network(x, t.flip(0), text)[0], whole, atol=1e-3)


@pytest.mark.parametrize("kind", ["mmdit", "flux"])
@torch.no_grad()
def test_the_pooled_text_is_seen(kind: str) -> None:
    network, x, text = network_of(kind), torch.randn(2, *IMAGES.shape), text_of(2)
    other = text._replace(pooled=-text.pooled)
    one, two = (network(x, torch.tensor(3.0), each)[0] for each in (text, other))
    assert not torch.allclose(one, two, atol=1e-3)


@torch.no_grad()
def test_pixart_ignores_padding() -> None:
    network, x, text = network_of("pixart"), torch.randn(2, *IMAGES.shape), text_of(2)
    padded = text._replace(states=torch.where(text.mask[..., None], text.states, torch.tensor(7.0)))
    one, two = (network(x, torch.tensor(3.0), each)[0] for each in (text, padded))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", [True, False])
@torch.no_grad()
def test_the_u_net_ignores_padding_if_told_to(mask: bool) -> None:
    config = made("unet_text", {**tiny("unet_text").model_dump(), "mask": mask})
    network, x, text = config.build_for_text(IMAGES, TEXT).eval(), torch.randn(2, *IMAGES.shape), text_of(2)
    padded = text._replace(states=torch.where(text.mask[..., None], text.states, torch.tensor(7.0)))
    one, two = (network(x, torch.tensor(3.0), each)[0] for each in (text, padded))
    assert torch.allclose(one, two, atol=1e-5) == mask


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_more_outputs_and_other_sizes(kind: str) -> None:
    wide = DataSpec(2, 16, 16)
    assert tiny(kind).several_sizes
    network = network_of(kind, wide, outputs=2)
    for height, width in ((16, 16), (8, 16), (16, 8)):
        x = torch.randn(2, 2, height, width)
        assert network(x, torch.tensor(3.0), text_of(2))[0].shape == (2, 4, height, width)


@torch.no_grad()
def test_flux_positions_are_those_of_the_patches() -> None:
    """A patch swapped with another is another image: it is not a bag of patches."""
    network, x, text = network_of("flux"), torch.randn(1, *IMAGES.shape), text_of(1)
    swapped = torch.cat([x[..., 4:], x[..., :4]], dim=3)
    one, two = (network(each, torch.tensor(3.0), text)[0] for each in (x, swapped))
    assert not torch.allclose(torch.cat([two[..., 4:], two[..., :4]], dim=3), one, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("unet_text", TextShape(0, 0, 4), "attends to tokens"),
        ("pixart", TextShape(0, 0, 4), "attends to tokens"),
        ("mmdit", TextShape(3, 4, 0), "needs a pooled state"),
        ("flux", TextShape(0, 0, 4), "needs tokens"),
    ],
)
def test_texts_that_do_not_fit(kind: str, text: TextShape, message: str) -> None:
    (problem,) = tiny(kind).text_problems(text)
    assert message in problem


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("unet_text", {"channels": (30, 64)}, "channels: 30 is not a positive multiple of norm_groups=32"),
        ("unet_text", {"attention": (3,)}, "attention: there is no level 3"),
        ("unet_text", {"depth": (1, 2)}, "depth: got 2 for 3 levels"),
        ("unet_text", {"heads": 7}, "heads: 7 does not divide the 64 channels of level 0"),
        ("mmdit", {"dual": 9}, "dual: 9 of depth=6 blocks"),
        ("flux", {"head_dim": 48}, "multiple of 32"),
    ],
)
def test_settings_that_do_not_fit(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        made(kind, settings)


def test_images_that_do_not_fit() -> None:
    assert "patches a side" in made("mmdit", {"largest": 2}).problems(IMAGES)[0]
    assert "the latent height of 7" in made("flux", {}).problems(DataSpec(1, 7, 8), "latent")[0]
