"""Marks in a sampler's noise: what they do to it, what p-values mean, and pictures found by their model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec
from sfumato.core.family import EmaOf
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, seeded
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.door import Door
from sfumato.provenance.noises import NOISES, NoiseConfig
from sfumato.provenance.stored import Provenance, write_provenance
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.sampling.noise_reader import NoiseReader
from sfumato.sampling.output import write_samples

Command = Callable[..., tuple[int, str, str]]
SHAPE = (2, 24, 24)
SCHEMES: dict[str, NoiseConfig] = {
    name: NOISES.make(name, secret="s", message="5c3a9f06") for name in NOISES.names()
}


def _noise(scheme: str, num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain and marked noise of the same samples."""
    plain = SampleRng(seed, range(num)).beginning(*SHAPE)
    shape = SCHEMES[scheme].build(SHAPE).applied
    return plain, SampleRng(seed, range(num), shape=shape).beginning(*SHAPE)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_row_is_a_function_of_its_seed_and_index_alone(scheme: str) -> None:
    _, marked = _noise(scheme, 5)
    shape = SCHEMES[scheme].build(SHAPE).applied
    rng = SampleRng(0, [3, 1], shape=shape)
    assert torch.equal(rng.beginning(*SHAPE), marked[[3, 1]])
    assert torch.equal(rng.normal(4), _after(0, [3, 1]).normal(4)), (
        "later draws are those of unmarked samples"
    )


def _after(seed: int, rows: list[int]) -> SampleRng:
    rng = SampleRng(seed, rows)
    rng.normal(*SHAPE)
    return rng


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_the_mark_is_found_and_another_is_not(scheme: str) -> None:
    plain, marked = _noise(scheme, 3)
    mark = SCHEMES[scheme].build(SHAPE)
    others = [
        SCHEMES[scheme].model_copy(update={name: value}).build(SHAPE)
        for name, value in (("secret", "t"), ("message", "5c3a60f9"))
    ]
    for before, after in zip(plain, marked, strict=True):
        assert mark.detect(after).p_value < 1e-4
        assert mark.detect(after * 7).p_value == pytest.approx(mark.detect(after).p_value), "of any scale"
        assert mark.detect(after + 0.7 * before.roll(1, -1)).p_value < 1e-3
        assert mark.detect(before).p_value > 1e-3
        assert all(other.detect(after).p_value > 1e-3 for other in others)


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("white", [True, False])
def test_p_values_are_exact_for_any_picture(scheme: str, white: bool) -> None:
    """Over random keys, of one noise that never saw them: white, or of a photograph's spectrum."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    if not white:
        noise = noise.cumsum(-1).cumsum(-2)
    values = [
        SCHEMES[scheme].model_copy(update={"secret": str(n)}).build(SHAPE).detect(noise).p_value
        for n in range(400)
    ]
    for level in (0.02, 0.1, 0.3):
        most = level + 3.5 * np.sqrt(level * (1 - level) / len(values))
        assert np.mean(np.array(values) <= level) <= most
    if scheme == "tree_ring":
        assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_gaussian_shading_keeps_the_noise_exactly_normal() -> None:
    """Sizes stay as drawn, and over the patterns of one secret every sign is balanced."""
    num = 2_000
    plain, marked = _noise("gaussian_shading", num)
    assert torch.equal(marked.abs(), plain.abs())
    patterns = SCHEMES["gaussian_shading"].build(SHAPE)._signs  # type: ignore[attr-defined]
    assert not np.sum([patterns(n) for n in range(256)], 0).any(), "each sign as often as its opposite"
    rows = marked.flatten(1).double().numpy()
    values = [stats.kstest(rows[:, column], "norm").pvalue for column in range(100)]
    assert stats.kstest(values, "uniform").pvalue > 1e-3, "each value's marginal, over the seeds"
    lengths = (rows[:, :500] ** 2).sum(1)
    assert stats.kstest(lengths, stats.chi2(500).cdf).pvalue > 1e-3
    products = rows[:, :300].T @ rows[:, :300] / num - np.eye(300)
    # Neighbours are uncorrelated but for the finite number of patterns.
    assert np.abs(products).mean() < 1.5 * np.sqrt(2 / np.pi) * np.sqrt(1 / num + 1 / 128)


def test_tree_ring_keeps_variance_and_is_real() -> None:
    """Of the average key; the rings are those of the definition, by brute force."""
    config = SCHEMES["tree_ring"]
    powers = []
    for n in range(60):
        mark = config.model_copy(update={"secret": str(n)}).build(SHAPE)
        powers.append(float(mark.applied(torch.randn(1, *SHAPE), [0])[:, 1].square().mean()))
    assert np.mean(powers) == pytest.approx(1, abs=4 * np.std(powers) / np.sqrt(60))
    marked = config.build(SHAPE).applied(torch.randn(1, *SHAPE), [0])
    spectrum = torch.fft.fft2(marked[0, 1].double())
    for ring in range(1, 11):
        upper = [
            spectrum[y, x]
            for y in range(-12, 12)
            for x in range(-12, 12)
            if round(float(np.hypot(y, x))) == ring and (y > 0 or (y == 0 and x > 0))
        ]
        assert torch.stack(upper).sub(upper[0]).abs().max() < 1e-4 * abs(complex(upper[0])) + 1e-4


def _model(noise: NoiseConfig | None, **settings: object) -> Generator:
    """A random network of the ddpm objective on grey images of 16x16."""
    config = config_class("diffusion").model_validate(
        {
            "family": "diffusion",
            "network": {"channels": [8], "layers_per_block": 1, "norm_groups": 4, "head_dim": 8},
            "objective": {"kind": "ddpm"},
            "sampling": {"sampler": "ddim", "steps": 6, **settings},
        }
    )
    data = DataSpec(1, 16, 16)
    family = config.build(data)
    spec = family.nets["network"]
    assert not isinstance(spec, EmaOf)
    with seeded("test"):
        net = spec.build()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    provenance = Provenance(ProvenanceSettings(noise=noise))
    return Generator(config, data, {"ema": net}, name="m", progress=Progress.at(1), provenance=provenance)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_pictures_are_found_by_inverting_their_sampler(scheme: str) -> None:
    noise = SCHEMES[scheme]
    model = _model(noise.model_copy(update={"radius": 7}) if scheme == "tree_ring" else noise)
    plain, marked = _model(None).sample(4, seed=3), model.sample(4, seed=3)
    assert (plain != marked).any()
    assert np.array_equal(model.sample(2, seed=3, batch_size=1), marked[:2])
    reader = NoiseReader(model)
    assert all(found.p_value < 1e-3 for found in reader.read(list(marked)))
    assert all(found.p_value > 1e-3 for found in reader.read(list(plain)))
    bigger = [np.asarray(Image.fromarray(image[..., 0]).resize((32, 32)))[..., None] for image in marked]
    assert all(found.p_value < 1e-3 for found in reader.read(bigger))


def test_the_command_finds_them(tmp_path: Path, sfumato_here: Command) -> None:
    model = _model(SCHEMES["gaussian_shading"])
    folder = tmp_path / "model"
    save_model_folder(
        folder,
        model.config,
        model.data,
        {"ema": model.nets["ema"].state_dict()},
        name="m",
        progress=Progress.at(1),
        provenance=model.provenance,
    )
    write_samples(tmp_path / "out", Generator.load(folder), 2, seed=1)
    line = json.loads((tmp_path / "out" / "samples.jsonl").read_text().splitlines()[0])
    assert line["provenance"]["noise"] == {"kind": "gaussian_shading", "message": "5c3a9f06"}
    assert '"s"' not in json.dumps(line), "the secret stays in the model's folder"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "foreign.png")
    detect = ("provenance", "detect")
    found = {}
    for name in ("out/000000.png", "foreign.png"):
        code, out, _ = sfumato_here(*detect, str(tmp_path / name), "--by", str(folder), "--json")
        found[name] = (code, json.loads(out)["files"][0]["marked"])
    assert found == {"out/000000.png": (0, True), "foreign.png": (1, False)}
    code, _, err = sfumato_here(*detect, str(tmp_path), "--steps", "3")
    assert (code, "--steps: has an effect only with --by" in err) == (2, True)
    write_provenance(folder, None)
    code, _, err = sfumato_here(*detect, str(tmp_path), "--by", str(folder))
    assert (code, "begin in noise without a mark" in err) == (2, True)


def test_what_cannot_be_marked_is_refused() -> None:
    noise = SCHEMES["gaussian_shading"]
    with pytest.raises(ConfigError, match=r"sampler: ddpm adds noise in every step; use dpmsolver"):
        _model(noise, sampler="ddpm").batches(1)
    with pytest.raises(ConfigError, match=r"eta: 0.5 adds noise in every step; set eta=0"):
        _model(noise).batches(1, options={"eta": 0.5})
    for shape, name, message in (
        ((1, 8, 8), "gaussian_shading", "needs noise of 256 values, this model's has 64"),
        ((4, 8, 8), "tree_ring", "needs noise of 16 values a side, this model's is 8x8"),
        ((1, 16, 32), "tree_ring", "radius: got 10, noise of 16x32 has room for 7"),
    ):
        with pytest.raises(ConfigError, match=message):
            NOISES.make(name).build(shape)
    with pytest.raises(ValueError, match="4 rings in 1 channels are too short a key"):
        NOISES.make("tree_ring", radius=4)
    door = Door(ProvenanceSettings(noise=noise, require=("noise",)))
    door.check(24, 24)
    with pytest.raises(ConfigError, match="noise marks pictures that are drawn, not edited ones"):
        door.check(24, 24, drawn=False)
    assert door.pixels(np.zeros((1, 24, 24, 1), np.uint8), drawn=False)[1] == [{}]
    recipe = recipes.load(
        Path(__file__).parents[3] / "pipelines" / "digits" / "dcgan.yaml", ["provenance.noise.kind=tree_ring"]
    )
    (problem,) = recipe.problems(DataSpec(1, 8, 8, tuple("0123456789")))
    assert problem.startswith("provenance.noise: this family's images do not begin in noise")
