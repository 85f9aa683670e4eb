"""Edits beyond noise and denoising: inversions, enlarging in tiles, outpainting, models made for an edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_edits import config_of, edit, images, model_of
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Condition, Listed
from sfumato.core.family import EncodesLatent, Reconstructs, SampleRequest
from sfumato.core.rng import SampleRng, seeded
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.editing.ancestral import mean_and_deviation
from sfumato.editing.edit import Edit, pairs
from sfumato.editing.operations import OPERATIONS, Block, path_of
from sfumato.editing.operations.project import Project, decoded
from sfumato.editing.operations.upscale import _ramp, _starts
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import from_uint8


def adapted(adapter: dict[str, Any], **sampling: Any) -> Generator:
    tiny = {"kind": "unet", "channels": (8, 16), "head_dim": 8, "norm_groups": 4}
    config = DiffusionConfig.model_validate(
        {
            "family": "diffusion",
            "network": tiny,
            "objective": {"kind": "rectified_flow"},
            "sampling": {"sampler": "euler", "steps": 2, **sampling},
            "adapter": adapter,
        }
    )
    assert config.problems(DataSpec(1, 8, 8)) == []
    return model_of(config)


def block_of(model: Generator, pixels: np.ndarray) -> Block:
    rows = [number % len(pixels) for number in range(model.block)]
    request = edit(model, OPERATIONS.make("img2img"), pixels)
    conditions = model.conditions_of(request.source, rows)
    asked = SampleRequest(num=model.block, conditions=conditions, options=request.options)
    return Block(
        images=from_uint8(pixels)[rows], mask=None, request=asked, rng=SampleRng(3, range(model.block))
    )


@pytest.mark.parametrize("member", ["ddpm", "flow", "latent"])
def test_edit_friendly_inversion_makes_the_image_again(member: str) -> None:
    """With the same text (here: none) the noise that was found leads back to the image."""
    model, pixels = model_of(config_of(member)), images(2)
    found = edit(model, OPERATIONS.make("ddpm_invert", strength=1.0), pixels).made(model, 0)
    if member == "latent":  # what its autoencoder makes of the image
        path = path_of(model, block_of(model, pixels))
        pixels = ((path.decode(path.encode(from_uint8(pixels)[[0, 1]])) + 1) * 127.5).round().byte()
        pixels = pixels.movedim(1, -1).detach().numpy()
    assert np.abs(found.astype(int) - pixels).max() <= 1


def test_the_mean_of_a_step_is_the_posteriors() -> None:
    """Against Ho et al. 2020, eq. 7, in its own symbols."""
    model = model_of(config_of("ddpm"))
    path = path_of(model, block_of(model, images(2)))
    x = torch.randn(model.block, 1, 8, 8)
    at = 2
    (a, s, _), (a_next, s_next, _) = path.levels[at], path.levels[at + 1]
    bar, bar_before = a**2, a_next**2
    alpha = bar / bar_before
    beta = 1 - alpha
    x_0 = path.image(x, at).detach()
    mean = np.sqrt(bar_before) * beta / (1 - bar) * x_0 + np.sqrt(alpha) * (1 - bar_before) / (1 - bar) * x
    found, deviation = mean_and_deviation(path, x, at)
    torch.testing.assert_close(found.detach(), mean.float(), rtol=1e-4, atol=1e-5)
    assert deviation == pytest.approx(np.sqrt((1 - bar_before) / (1 - bar) * beta), rel=1e-6)
    assert s == pytest.approx(np.sqrt(1 - bar))
    assert s_next == pytest.approx(np.sqrt(1 - bar_before))


def test_tiles_cover_an_image_and_join_without_seams() -> None:
    for side, tile in ((4, 4), (9, 4), (10, 4)):
        starts = list(_starts(side, tile, 0.25))
        covered = {place for start in starts for place in range(start, start + tile)}
        assert covered == set(range(side))
        assert starts[-1] == side - tile
    assert float(_ramp(8, 0.25).min()) > 0


def test_an_image_of_any_size_is_enlarged() -> None:
    model = adapted({"kind": "upscale", "factor": 2})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 9, 1), dtype=np.uint8)
    request = edit_of(model, OPERATIONS.make("upscale"), pixels)
    request.check(model)
    found = request.made(model, 0)
    assert found.shape == (2, 12, 18, 1)
    assert pairs(request.images, {0: found}, 2).shape == (4, 12, 18, 1)
    one = edit_of(model, OPERATIONS.make("upscale"), pixels[:, :4, :4])
    small = one.made(model, 0)
    seen = pixels[:, :4, :4].repeat(2, 1).repeat(2, 2)
    drawn = model.sample(2, seed=3, conditions={"small": Listed("image", from_uint8(seen))})
    assert np.array_equal(small, drawn), "one tile is a sample of the model"
    with pytest.raises(ConfigError, match="enlarges images of at least 4x4"):
        edit_of(model, OPERATIONS.make("upscale"), pixels[:, :3, :3]).check(model)
    plain = model_of(config_of("flow"))
    with pytest.raises(ConfigError, match="needs a model trained to enlarge"):
        edit_of(plain, OPERATIONS.make("upscale"), pixels).check(plain)


def edit_of(model: Generator, operation: Any, pixels: np.ndarray) -> Edit:
    given = [each for each in model.takes.conditions if each.name not in operation.gives]
    assert not given
    return Edit(
        images=Listed("image", from_uint8(pixels)),
        masks=None,
        source={},
        operation=operation,
        options=operation.options(model, model.options({})),
        seed=3,
    )


def test_a_smaller_image_stays_in_the_middle_of_what_is_painted_around() -> None:
    model = model_of(config_of("flow"))
    pixels = images(2)[:, :4, :6]
    request = edit_of(model, OPERATIONS.make("outpaint", x=0.0, y=1.0, resample=1), pixels)
    request.check(model)
    found = request.made(model, 0)
    assert found.shape == (2, 8, 8, 1)
    assert np.array_equal(found[:, 4:, :6], pixels)
    with pytest.raises(ConfigError, match="outpaint sets a smaller one on the model's 8x8"):
        edit_of(model, OPERATIONS.make("outpaint"), images(2)).check(model)


def test_a_model_trained_to_inpaint_sees_mask_and_image() -> None:
    model = adapted({"kind": "inpainting", "column": "image"})
    pixels, mask = images(2), np.zeros((1, 8, 8, 1), np.uint8)
    mask[:, 2:5, 3:7] = 255
    operation = OPERATIONS.make("inpaint")
    request = Edit(
        images=Listed("image", from_uint8(pixels)),
        masks=Listed("image", from_uint8(mask)),
        source={},
        operation=operation,
        options=model.options({}),
        seed=3,
    )
    request.check(model)
    found = request.made(model, 0)
    inside = mask[0, :, :, 0] > 0
    assert np.array_equal(found[:, ~inside], pixels[:, ~inside])
    both = {"known": Listed("image", from_uint8(pixels)), "mask": Listed("image", from_uint8(mask))}
    drawn = model.sample(2, seed=3, conditions=both)
    assert np.array_equal(found[:, inside], drawn[:, inside])


def gan() -> Generator:
    return model_of(config_class("gan").variants()["tiny"], DataSpec(1, 8, 8))


def test_an_image_that_the_model_made_is_found_again() -> None:
    model = gan()
    block = block_of(model, images(2))
    family: Any = model.family
    with torch.no_grad():
        z_ND = family.latents(
            model.nets, block.request.options, model.progress, SampleRng(9, range(model.block))
        )
        made: Tensor = decoded(model, block.request, z_ND)
    operation = Project(steps=60, starts=2, prior=0.0)
    found = operation.edited(model, replace(block, images=made))
    before = (block.images - made).square().mean()
    assert float((found - made).square().mean()) < 0.02 * float(before)


def test_an_attribute_of_nothing_changes_nothing(tmp_path: Path) -> None:
    model = gan()
    for name, value in (("more", 255), ("less", 0)):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / name / f"{number}.png")
    settings = {"more": str(tmp_path / "more"), "less": str(tmp_path / "less"), "steps": 20, "starts": 1}
    block = block_of(model, images(2))

    def moved(amount: float) -> Tensor:
        rng = SampleRng(3, range(model.block))
        operation = OPERATIONS.make("attribute", amount=amount, **settings)
        return operation.edited(model, replace(block, rng=rng)).detach()

    plain = Project(steps=20, starts=1).edited(model, replace(block, rng=SampleRng(3, range(model.block))))
    torch.testing.assert_close(moved(0.0), plain.detach())
    assert float(moved(2.0).mean()) > float(moved(-2.0).mean()), "more of what is white is lighter"
    wrong = OPERATIONS.make("attribute", more=str(tmp_path / "none"), less=settings["less"])
    assert "is not there" in wrong.image_problems(model, (1, 8, 8))[0]


@pytest.mark.parametrize(("name", "member"), [("vae", "tiny"), ("flow", "tiny"), ("flow", "realnvp")])
def test_the_vector_of_an_image_leads_back_to_it(name: str, member: str) -> None:
    model = model_of(config_class(name).variants()[member], DataSpec(1, 8, 8, classes=("a", "b")))
    block, family = block_of(model, images(3)), model.family
    assert isinstance(family, EncodesLatent)
    with torch.no_grad():
        z_ND = family.encode_latents(model.nets, block.images, block.request, model.progress)
        found = decoded(model, block.request, z_ND)
        expected = block.images
        if isinstance(family, Reconstructs):
            batch = {"image": block.images, "label": block.request.conditions["label"]}
            expected = family.reconstruct(model.nets, batch, model.progress, any)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Packed grey pictures: `light` are on the whole lighter on their left, `dark` are not."""
    folder, packed = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("data") / "packed"
    rng = np.random.default_rng(5)
    for name, left in (("dark", 90), ("light", 150)):
        (folder / name).mkdir()
        for number in range(3):
            pixels = rng.integers(80, 100, (8, 8))
            pixels[:, :4] += left - 90
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    pack(FolderSource(path=str(folder)), packed)
    return str(packed)


@pytest.mark.parametrize("less", ["dark", ""])
def test_an_attribute_of_a_class_is_the_difference_of_means(less: str, classes: str) -> None:
    """A new Glow is linear, so that its vectors differ as the pictures do."""
    config = config_class("flow").tiny()
    data = DataSpec(1, 8, 8)
    with seeded(0):
        nets = {"ema": config.build(data).nets["network"].build()}
    model = Generator(config, data, nets)
    rows = rows_of_data(classes, [Condition("image", "image", "image"), LABEL])
    pixels, labels = (rows[name].read(range(6)) for name in ("image", "label"))
    way = pixels[labels == 1].mean(0) - pixels[labels == 0].mean(0)
    block = block_of(model, np.full((1, 8, 8, 1), 100, np.uint8))
    operation = OPERATIONS.make("attribute", more="light", less=less, among=classes, amount=0.5)
    assert operation.problems(model, block.request.options) == []
    assert operation.image_problems(model, (1, 8, 8)) == []
    with torch.no_grad():
        found = operation.edited(model, block)
    torch.testing.assert_close(found[:1], block.images[:1] + 0.5 * way, rtol=0, atol=1e-4)


def test_classes_that_are_not_there_are_refused(classes: str, tmp_path: Path) -> None:
    model = gan()
    for settings, line in (
        ({"less": "blue", "among": classes}, "--set less: blue is no class"),
        ({"less": "dark", "among": classes, "column": "text"}, "--set column: "),
        ({"less": "dark", "among": str(tmp_path)}, "--set among: "),
    ):
        operation = OPERATIONS.make("attribute", more="light", **settings)
        (found,) = operation.image_problems(model, (1, 8, 8))
        assert found.startswith(line)
    for settings in ({}, {"less": "light", "among": classes}):
        (found,) = OPERATIONS.make("attribute", more="light", **settings).problems(model, model.options({}))
        assert found.startswith("--set less: ")
