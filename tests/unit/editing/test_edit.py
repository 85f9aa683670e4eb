"""Edits: what they keep, what they equal, and the path that they enter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_edits import DATA, MEMBERS, config_of, edit, images, model_of
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.inversion import followed, inverted
from sfumato.core.paths import Level
from sfumato.core.paths import Path as NoisePath
from sfumato.core.progress import Progress
from sfumato.editing.operations import OPERATIONS
from sfumato.editing.operations.img2img import Img2Img
from sfumato.editing.operations.inpaint import repainted
from sfumato.editing.operations.interpolate import Interpolate, between
from sfumato.editing.operations.invert import Invert
from sfumato.editing.operations.style_mix import StyleMix
from sfumato.editing.output import Output, write_rows
from sfumato.families import config_class
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.door import Door
from sfumato.provenance.manifests import keys as chains
from sfumato.provenance.manifests.reading import read_manifest
from sfumato.provenance.metadata import COMPOSITE
from sfumato.provenance.stored import Provenance, write_provenance
from sfumato.sampling.model_folder import save_model_folder

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("member", MEMBERS)
def test_strength_0_is_the_image_and_1_a_sample(member: str) -> None:
    model, pixels = model_of(config_of(member)), images(3)
    assert np.array_equal(edit(model, Img2Img(strength=0), pixels).made(model, 0), pixels)
    forgotten = edit(model, Img2Img(strength=1), pixels).made(model, 0)
    assert np.array_equal(forgotten, model.sample(3, seed=3))
    between = edit(model, Img2Img(strength=0.5), pixels).made(model, 0)
    assert not np.array_equal(between, pixels)
    assert not np.array_equal(between, forgotten)


@pytest.mark.parametrize("member", ["ddpm", "flow", "edm", "latent"])
def test_pixels_outside_the_mask_are_the_images(member: str) -> None:
    model, pixels = model_of(config_of(member)), images(3)
    mask = np.zeros((1, 8, 8, 1), np.uint8)
    mask[:, 2:5, 3:7] = 255
    found = edit(model, OPERATIONS.make("inpaint", resample=2), pixels, mask).made(model, 0)
    inside = mask[0] > 0
    assert np.array_equal(found[:, ~inside], pixels[:, ~inside])
    assert (found[:, inside] != pixels[:, inside]).mean() > 0.5


@pytest.mark.parametrize("objective", ["ddpm", "rectified_flow", "edm"])
def test_guided_models_edit_by_their_classes(objective: str) -> None:
    data = DataSpec(1, 8, 8, ("zero", "one"))
    base = config_of({"ddpm": "ddpm", "rectified_flow": "flow", "edm": "edm"}[objective])
    model = model_of(
        base.model_copy(update={"sampling": base.sampling.model_copy(update={"guidance": 2.0})}), data
    )
    mask = np.zeros((1, 8, 8, 1), np.uint8)
    mask[:, 4:] = 255
    request = edit(model, OPERATIONS.make("inpaint", resample=1), images(2), mask)
    zero, one = (replace(request, source=model.takes.source(labels=label)).made(model, 0) for label in (0, 1))
    assert not np.array_equal(zero, one)


def test_an_image_does_not_depend_on_the_others() -> None:
    model = model_of(config_of("ddpm"))
    model.block = 2
    pixels = images(5)
    whole = edit(model, Img2Img(strength=0.5), pixels)
    assert whole.blocks(model) == 3
    assert [len(whole.made(model, block)) for block in (2, 0, 1)] == [1, 2, 2]
    changed = pixels.copy()
    changed[2] = 0
    assert np.array_equal(
        edit(model, Img2Img(strength=0.5), changed).made(model, 1)[1], whole.made(model, 1)[1]
    )


def test_an_interrupted_request_resumes(tmp_path: Path) -> None:
    model, pixels = model_of(config_of("ddpm")), images(5)
    model.block = 2
    request = edit(model, Img2Img(strength=0.5), pixels)
    begun = Output(tmp_path / "out", request, model, overwrite=False)
    begun.write(1, request.made(model, 1))
    again = Output(tmp_path / "out", request, model, overwrite=False)
    assert again.missing() == [0, 2]
    other = replace(request, seed=4)
    assert Output(tmp_path / "out", other, model, overwrite=False).missing() == [0, 1, 2]
    for block in again.missing():
        again.write(block, request.made(model, block))
    folder = again.finish()
    lines = [json.loads(line) for line in (folder / "edits.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(5))
    assert sorted(path.suffix for path in folder.iterdir()) == [".jsonl", *[".png"] * 6]


class Line(NoisePath):
    """Images whose values are all the same number, standard normal; the network's answer in closed form.

    With v a vector of ones: E[x_0 | x] = v a (v x) / (a^2 d + s^2).
    """

    def __init__(self, steps: int, values: int) -> None:
        times = [1 - i / steps for i in range(steps + 1)]
        self.levels = [Level(math.cos(t * 1.57), math.sin(t * 1.57), t) for t in times]
        self.shape = (1, 1, values)

    def encode(self, image_NCHW: Tensor) -> Tensor:
        return image_NCHW

    def decode(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW

    def sample(self, x_NCHW: Tensor, first: int) -> Tensor:
        raise NotImplementedError

    def image(self, x_NCHW: Tensor, at: int) -> Tensor:
        a, s, _ = self.levels[at]
        weight = a / (a**2 * x_NCHW.shape[-1] + s**2)
        return (weight * x_NCHW.sum(dim=-1, keepdim=True)).expand_as(x_NCHW)


def test_what_is_painted_fits_what_is_known() -> None:
    """Of images of one value, the rest has to take that of the known part; resampling brings it there."""
    path, rng = Line(12, 8), torch.Generator().manual_seed(0)
    known = torch.randn(200, 1, 1, 1, generator=rng).expand(200, 1, 1, 8)
    changes = torch.tensor([0.0] + [1.0] * 7).view(1, 1, 1, 8)
    errors = {}
    for resample in (1, 10):
        found = repainted(path, known, changes, lambda: torch.randn(200, 1, 1, 8, generator=rng), resample)
        assert torch.allclose(found[..., :1], known[..., :1], atol=1e-5)
        errors[resample] = float((found - known)[..., 1:].square().mean())
    assert errors[10] < errors[1] / 3, errors
    assert errors[10] < 0.1, errors


def test_inversion_finds_the_noise_of_an_image() -> None:
    """Plain inversion misses it; iterations find it, to rounding."""
    path, rng = Line(20, 4), torch.Generator().manual_seed(0)
    x = torch.randn(50, 1, 1, 1, generator=rng).expand(50, 1, 1, 4)
    plain, refined = (float((followed(path, inverted(path, x, 0, n), 0) - x).abs().max()) for n in (1, 8))
    assert refined < 0.05 * plain


@pytest.mark.parametrize("member", ["ddpm", "flow", "edm"])
def test_inversion_and_back(member: str) -> None:
    model, pixels = model_of(config_of(member)), images(2)
    operation = Invert(refine=5)
    request = edit(model, operation, pixels)
    request = replace(request, options=request.options.model_copy(update={"steps": 50}))
    error = np.square(request.made(model, 0).astype(float) - pixels).mean()
    assert 10 * math.log10(255**2 / max(error, 1e-9)) > 30


def test_the_way_between_samples() -> None:
    """Against scipy's great circle; it begins at a sample and leads to the next."""
    from scipy.spatial import geometric_slerp

    a, b = (torch.from_numpy(v) for v in np.random.default_rng(0).normal(size=(2, 5)))
    a, b = a / a.norm(), b / b.norm()
    expected = geometric_slerp(a.numpy(), b.numpy(), np.arange(4) / 4)
    np.testing.assert_allclose(between(a, b, 4, "spherical").numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(between(a, b, 2, "linear")[1], (a + b) / 2, atol=1e-6)
    assert torch.allclose(between(a, a, 3, "spherical"), a.float().expand(3, 5))


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_interpolation_leads_through_samples(family: str, tmp_path: Path) -> None:
    config = config_class(family).tiny()
    data = DataSpec(1, 8, 8, ("zero", "one"))
    model = model_of(config, data)
    operation = Interpolate(ends=2, frames=3)
    source = model.takes.source(labels=1)
    rows = list(operation.drawn(model, source, model.options(), seed=5))
    assert [row.shape for row in rows] == [(3, 8, 8, 1)] * 2
    samples = model.sample(2, seed=5, labels=1)
    for row, sample in zip(rows, samples, strict=True):
        assert np.abs(row[0].astype(int) - sample).max() <= 1, "decoded from the same vector"
    folder = write_rows(tmp_path / "out", model, rows, {}, overwrite=False)
    with Image.open(folder / "animation.webp") as animation:
        assert animation.n_frames == 6


def test_a_table_of_mixed_styles_has_samples_on_its_edges(tmp_path: Path) -> None:
    data = DataSpec(1, 8, 8, ("zero", "one"))
    model = model_of(config_class("gan").variants()["stylegan2"], data)
    source = model.takes.source(labels=1)
    layers = model.family.style_layers  # type: ignore[attr-defined]
    operation = StyleMix(rows=2, columns=3, first=0, last=layers - 1)
    rows = list(operation.drawn(model, source, model.options(), seed=5))
    assert [row.shape for row in rows] == [(4, 8, 8, 1)] * 3 and (rows[0][0] == 255).all()
    samples = model.sample(5, seed=5, labels=1).astype(int)
    assert np.abs(rows[0][1:] - samples[:3]).max() <= 1, "the columns' samples"
    for at, row in enumerate(rows[1:], 3):
        assert np.abs(row[0] - samples[at]).max() <= 1, "the row's sample"
        assert np.abs(row[1:] - samples[:3]).max() <= 1, "which give every style"
    write_rows(tmp_path / "out", model, rows, {}, overwrite=False)
    (problem,) = StyleMix(last=layers).problems(model, model.options())
    assert f"0 to {layers - 1}" in problem
    (problem,) = StyleMix().problems(model_of(config_class("gan").tiny(), data), model.options())
    assert "has no styles" in problem


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for member in ("ddpm", "pix2pix"):
        config = config_of("ddpm") if member == "ddpm" else config_class("translation").variants()["pix2pix"]
        model = model_of(config)
        nets = {name: net.state_dict() for name, net in model.nets.items()}
        save_model_folder(tmp_path / member, config, DATA, nets, name=member, progress=Progress.at(64))
    (tmp_path / "in").mkdir()
    for number, pixels in enumerate(images(3)):
        Image.fromarray(pixels[..., 0]).save(tmp_path / "in" / f"{number}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:4]).save(tmp_path / "small.png")
    return tmp_path


def test_the_command_edits_a_folder_and_says_how(project: Path, sfumato_here: Command) -> None:
    status, out, err = sfumato_here("edit", "ddpm", "in", "--out", "out", "--strength", "0", "--json")
    assert status == 0, err
    assert json.loads(out)["images"] == 3
    for number in range(3):
        places = (f"in/{number}.png", f"out/00000{number}.png")
        before, after = (np.asarray(Image.open(project / place)) for place in places)
        assert np.array_equal(before, after)
    lines = [json.loads(line) for line in (project / "out" / "edits.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["in/0.png", "in/1.png", "in/2.png"]
    assert lines[0]["operation"] == {"kind": "img2img", "strength": 0.0}
    assert {"seed", "model_digest", "options"} <= lines[0].keys()
    assert sorted(path.name for path in project.iterdir() if path.name.startswith(".")) == []
    assert sfumato_here("edit", "ddpm", "in/0.png", "--out", "painted", "--mask", "mask.png")[0] == 0
    assert sfumato_here("edit", "pix2pix", "in", "--out", "translated")[0] == 0
    line = (project / "translated" / "edits.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["operation"]["kind"] == "translate"


def test_edits_leave_by_the_door_and_name_what_they_were_made_from(
    project: Path, sfumato_here: Command
) -> None:
    """The first picture has a manifest of somebody else, the others none."""
    own, other = (chains.write_keys(project / name) and project / name for name in ("own", "other"))
    blocks = [
        {
            "metadata": True,
            "c2pa": {"certificate": str(place / chains.CHAIN), "key": str(place / chains.KEY)},
        }
        for place in (own, other)
    ]
    picture = Image.open(project / "in" / "0.png").copy()
    Door(ProvenanceSettings.model_validate(blocks[1])).write(project / "in" / "0.png", picture)
    settings = ProvenanceSettings.model_validate({**blocks[0], "require": ["c2pa"]})
    write_provenance(project / "ddpm", Provenance(settings))
    status, _, err = sfumato_here("edit", "ddpm", "in", "--out", "out", "--strength", "0.5")
    assert status == 0, err
    root = own / chains.ROOT
    found = [read_manifest(project / "out" / f"00000{number}.png", root) for number in range(3)]
    for one in found:
        assert (one.outcome, one.source_type) == ("trusted", COMPOSITE)
    names = [[(part.title, part.outcome) for part in one.ingredients] for one in found]
    assert names == [[("0.png", "untrusted")], [("1.png", "unsigned")], [("2.png", "unsigned")]]
    assert read_manifest(project / "out" / "grid.png", root).outcome == "trusted"
    lines = [json.loads(line) for line in (project / "out" / "edits.jsonl").read_text().splitlines()]
    assert all(line["provenance"]["metadata"] and "c2pa" in line["provenance"] for line in lines)
    noise = {"noise": {"kind": "gaussian_shading"}, "require": ["noise"]}
    write_provenance(project / "ddpm", Provenance(ProvenanceSettings.model_validate(noise)))
    status, _, err = sfumato_here("edit", "ddpm", "in", "--out", "more", "--strength", "0.5")
    assert (status, "noise marks pictures that are drawn" in err) == (2, True)
    assert not (project / "more").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ddpm", "in", "--mask", "small.png"], "--mask: is 8x4, the image is 8x8"),
        (["ddpm", "in", "--mask", "mask.png", "--by", "img2img"], "has no effect on img2img"),
        (["ddpm", "in", "--by", "inpaint"], "--mask: inpaint needs one"),
        (["ddpm", "in", "--by", "paint"], "paint"),
        (["ddpm", "in", "--set", "resample=2"], "resample"),
        (["ddpm", "nothing.png"], "no such file"),
        (["pix2pix", "in", "--by", "img2img"], "has no path from noise to image"),
        (["ddpm", "in", "--by", "translate"], "needs a model that takes one picture"),
        (["ddpm", "--by", "interpolate"], "has no latent vector"),
        (["ddpm"], "IMAGE: img2img edits images"),
        (["ddpm", "in", "--strength", "2"], "less than or equal to 1"),
        (["ddpm", "mask.png", "--prompt", "a cat"], "takes none"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], message: str, project: Path, sfumato_here: Command
) -> None:
    status, _, err = sfumato_here("edit", *arguments, "--out", "out")
    assert status == 2
    assert message in err
    assert not (project / "out").exists()
