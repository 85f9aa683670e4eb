"""What `sample --out` writes, and what it refuses to overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sfumato
from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, seeded
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.data.reading.local_reader import read_all
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.sampling.generator import Generator
from sfumato.sampling.grid import GAP, image_grid, to_pil
from sfumato.sampling.output import write_samples

DATA = DataSpec(1, 8, 8, ("zero", "one", "two"))


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = DiffusionConfig.tiny()
    with seeded(0):
        net = config.build(DATA).nets["network"].build()
    return Generator(config, DATA, {"ema": net}, name="tiny", progress=Progress.at(12), digest="abc")


def test_images_grid_and_lines(generator: Generator, tmp_path: Path) -> None:
    out = write_samples(tmp_path / "a" / "out", generator, 70, seed=2, options={"steps": 2})
    names = sorted(path.name for path in out.iterdir())
    assert names == [*(f"{index:06d}.png" for index in range(70)), "grid.png", "samples.jsonl"]
    expected = generator.sample(70, seed=2, options={"steps": 2})
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    for index, line in enumerate(lines):
        assert np.array_equal(np.asarray(Image.open(out / line["file"])), expected[index, ..., 0])
        assert (line["index"], line["seed"], line["label"]) == (index, 2, index % 3)
        assert line["class"] == DATA.classes[index % 3]
    assert len(lines) == 70
    assert lines[5]["row_seed"] == SampleRng(2, range(6)).seeds[5]
    assert lines[0]["options"]["steps"] == 2
    assert (lines[0]["model"], lines[0]["model_digest"], lines[0]["images_seen"]) == ("tiny", "abc", 12)
    assert lines[0]["sfumato"] == sfumato.__version__
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_same_request_writes_the_same_bytes(generator: Generator, tmp_path: Path) -> None:
    one = write_samples(tmp_path / "one", generator, 5, batch_size=1)
    two = write_samples(tmp_path / "two", generator, 5, batch_size=200)
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_an_existing_folder(generator: Generator, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_samples(out, generator, 4)  # empty is fine
    with pytest.raises(ConfigError, match="holds 6 entries already"):
        write_samples(out, generator, 1)
    write_samples(out, generator, 1, overwrite=True)
    assert len(list(out.iterdir())) == 3
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"'notes\.txt', which is not a sample and would be lost"):
        write_samples(out, generator, 1, overwrite=True)
    with pytest.raises(ConfigError, match="is a file"):
        write_samples(out / "notes.txt", generator, 1)
    assert (out / "notes.txt").read_text() == "mine"


def test_an_interruption_leaves_nothing(generator: Generator, tmp_path: Path) -> None:
    def interrupt(done: int, num: int) -> None:
        raise KeyboardInterrupt

    kept = write_samples(tmp_path / "kept", generator, 1)
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    for out in (tmp_path / "new", kept):
        with pytest.raises(KeyboardInterrupt):
            write_samples(out, generator, 3, overwrite=True, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_bad_options_leave_no_folder(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_samples(tmp_path / "out", generator, 3, options={"stepps": 2})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_grid_shows_every_image_in_its_place(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 16, channels), dtype=np.uint8)
    grid = np.asarray(image_grid(images, columns=3, smallest=24))
    grid = grid if grid.ndim == 3 else grid[..., None]
    assert grid.shape == (3 * (24 + GAP) + GAP, 3 * (48 + GAP) + GAP, channels)
    for index, image in enumerate(images):
        top, left = GAP + index // 3 * (24 + GAP), GAP + index % 3 * (48 + GAP)
        assert np.array_equal(grid[top : top + 24 : 3, left : left + 48 : 3], image)
    assert (grid[:GAP] == 255).all()


def test_large_images_are_not_enlarged() -> None:
    assert image_grid(np.zeros((1, 64, 64, 3), np.uint8)).size == (64 + 2 * GAP, 64 + 2 * GAP)


def test_channels_that_have_no_picture() -> None:
    with pytest.raises(ConfigError, match="2 channels cannot be shown"):
        to_pil(np.zeros((8, 8, 2), np.uint8))


def test_classes_from_a_data_set_are_recorded_by_number_and_name(digits_data: Path, tmp_path: Path) -> None:
    data = Manifest.load(digits_data).spec
    config = DiffusionConfig.tiny()
    with seeded(0):
        net = config.build(data).nets["network"].build()  # type: ignore[union-attr]
    model = Generator(config, data, {"ema": net})
    rows = rows_of_data(str(digits_data), model.conditions)
    out = write_samples(tmp_path / "out", model, 5, conditions=rows, options={"steps": 2})
    (part,) = read_all(digits_data, first=0, stop=5)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == part["label"].tolist()
    assert [line["class"] for line in lines] == [data.classes[label] for label in part["label"]]
    wanted = model.sample(5, labels=part["label"].tolist(), options={"steps": 2})
    with Image.open(out / "000003.png") as image:
        assert np.array_equal(np.asarray(image), wanted[3, :, :, 0])
