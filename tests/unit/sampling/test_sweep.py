"""An option at several values: the samples that separate calls give, in a labelled grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.sampling.generator import Generator
from sfumato.sampling.output import write_samples
from sfumato.sampling.sweep import Sweep

DATA = DataSpec(1, 8, 8, ("zero", "one", "two"))


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = DiffusionConfig.tiny()
    with seeded(0):
        net = config.build(DATA).nets["network"].build()
    return Generator(config, DATA, {"ema": net}, name="tiny", progress=Progress.at(12), digest="abc")


def test_each_value_gives_the_samples_of_its_own_call(generator: Generator, tmp_path: Path) -> None:
    sweep = Sweep.of("guidance=1, 2.5")
    out = write_samples(tmp_path / "out", generator, 66, seed=2, options={"steps": 2}, sweep=sweep)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [(line["index"], line["options"]["guidance"]) for line in lines] == [
        (index, guidance) for index in range(66) for guidance in (1, 2.5)
    ]
    for guidance in (1, 2.5):
        expected = generator.sample(66, seed=2, options={"steps": 2, "guidance": guidance})
        mine = [line for line in lines if line["options"]["guidance"] == guidance]
        for image, line in zip(expected, mine, strict=True):
            assert np.array_equal(np.asarray(Image.open(out / line["file"])), image[..., 0])
    assert len(list(out.glob("0*.png"))) == 132


def test_the_grid_has_a_row_for_each_sample_and_a_column_for_each_value(
    generator: Generator, tmp_path: Path
) -> None:
    def grid(rows: int, values: str) -> Image.Image:
        sweep = Sweep.of(f"guidance={values}")
        out = write_samples(tmp_path / f"{rows}-{values}", generator, rows, options={"steps": 1}, sweep=sweep)
        return Image.open(out / "grid.png")

    one, taller, wider = grid(1, "1,2"), grid(3, "1,2"), grid(1, "1,2,4")
    tile = wider.width - one.width
    assert taller.height - one.height == 2 * tile
    assert one.width > 2 * tile
    # The first image stands in the corner that the texts leave, enlarged by a whole factor.
    picture = np.asarray(one.convert("L"))
    image = np.asarray(Image.open(tmp_path / "1-1,2" / "000000.png"))
    left, top, scale = one.width - 2 * tile, one.height - tile, (tile - 2) // 8
    np.testing.assert_array_equal(
        picture[top : top + 8 * scale : scale, left : left + 8 * scale : scale], image
    )
    assert (picture[:, : left - 2] < 128).any() and (picture[: top - 2] < 128).any(), "texts"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("guidance", "give an option and its values, such as guidance=1,2,4,8"),
        ("guidance=1,,2", "give an option and its values"),
        ("=1,2", "give an option and its values"),
        ("guidance=1,1", "the same value twice"),
        ("guidance=" + ",".join(map(str, range(21))), "21 values; give at most 20"),
    ],
)
def test_bad_sweeps_get_one_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Sweep.of(text)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_named_before_anything_is_drawn(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="guidence: diffusion has no such sampling option"):
        write_samples(tmp_path / "out", generator, 2, sweep=Sweep.of("guidence=1,2"))
    assert list(tmp_path.iterdir()) == []
