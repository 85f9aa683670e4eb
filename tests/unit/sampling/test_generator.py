"""The same request gives the same bytes, however it is cut and whoever draws it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.objectives.ddpm import DDPMSampling
from sfumato.sampling.generator import Generator, block_rows
from sfumato.sampling.model_folder import save_model_folder

DATA = DataSpec(1, 8, 8, ("a", "b", "c"))
DRAW_BLOCKS = """
import sys, numpy, torch, sfumato
torch.set_num_threads(int(sys.argv[3]))
generator = sfumato.load(sys.argv[1])
blocks = {}
for first in map(int, sys.argv[4:]):
    conditions = generator.conditions_of({}, range(first, first + generator.block))
    drawn = generator.sample_block(first, seed=3, conditions=conditions, options=generator.options())
    blocks[str(first)] = drawn.numpy()
numpy.savez(sys.argv[2], **blocks)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # eta > 0, so that the steps draw noise as well as the start.
    config = DiffusionConfig.tiny().model_copy(
        update={"sampling": DDPMSampling(sampler="ddim", steps=3, guidance=1.5, eta=0.5)}
    )
    with seeded(0, "init", "network"):
        net = config.build(DATA).nets["network"].build()
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model_folder(path, config, DATA, {"ema": net.state_dict()}, name="tiny", progress=Progress.at(10))
    return path


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return sfumato.load(folder)


@pytest.fixture(scope="module")
def reference(generator: Generator) -> np.ndarray:
    return generator.sample(150, seed=3)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 65, 200])
def test_bytes_do_not_depend_on_the_batch_size(
    generator: Generator, reference: np.ndarray, batch_size: int
) -> None:
    assert generator.sample(150, seed=3, batch_size=batch_size).tobytes() == reference.tobytes()


@pytest.mark.parametrize("num", [1, 10, 100])
def test_a_sample_is_the_same_in_a_shorter_request(
    generator: Generator, reference: np.ndarray, num: int
) -> None:
    assert generator.sample(num, seed=3).tobytes() == reference[:num].tobytes()


def test_any_process_draws_any_blocks(
    generator: Generator, folder: Path, reference: np.ndarray, tmp_path: Path
) -> None:
    """Another process draws the last two blocks, in reverse; this one drew the first among all others."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-c", DRAW_BLOCKS, folder, tmp_path / "drawn.npz", threads, "128", "64"]
    source = str(Path(sfumato.__file__).parents[1])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": source})
    with np.load(tmp_path / "drawn.npz", allow_pickle=False) as drawn:
        x = np.concatenate([drawn["64"], drawn["128"]])[: 150 - 64]
    found = (np.clip(x.transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8)
    assert found.tobytes() == reference[64:].tobytes()


def test_seed_index_and_label_all_matter(generator: Generator, reference: np.ndarray) -> None:
    assert not np.array_equal(generator.sample(6, seed=4), reference[:6])
    assert len({image.tobytes() for image in reference}) == len(reference)
    same_label = generator.sample(6, seed=3, labels=[0] * 6)
    assert np.array_equal(same_label[[0, 3]], reference[[0, 3]])
    assert not np.array_equal(same_label[1], reference[1])


def test_labels_default_to_all_classes_in_turn(generator: Generator, reference: np.ndarray) -> None:
    given = generator.conditions_of({}, range(7))
    assert given["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert generator.sample(7, seed=3, labels=[0, 1, 2, 0, 1, 2, 0]).tobytes() == reference[:7].tobytes()


@pytest.mark.parametrize("labels", [1, "1", "b", ["b"], [1, 1], np.array([1]), torch.tensor([1])])
def test_one_class_by_number_or_name_is_that_of_all(generator: Generator, labels: Any) -> None:
    """As `--label` has it on the command line."""
    assert np.array_equal(generator.sample(3, labels=labels), generator.sample(3, labels=[1, 1, 1]))


def test_several_classes_are_taken_in_turn(generator: Generator) -> None:
    assert np.array_equal(generator.sample(5, labels=["b", 0]), generator.sample(5, labels=[1, 0, 1, 0, 1]))


def test_sampling_leaves_the_global_generator_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    Generator.load(folder).sample(1)
    assert torch.equal(before, torch.get_rng_state())


def test_options_change_the_images(generator: Generator, reference: np.ndarray) -> None:
    for change in ({"guidance": 3.0}, {"steps": 4}, {"eta": 0.0}, {"eta": 0.0, "sampler": "dpmsolver++"}):
        assert not np.array_equal(generator.sample(4, seed=3, options=change), reference[:4]), change


def test_options_of_the_command_line_are_arguments(generator: Generator) -> None:
    asked = {"steps": 4, "guidance": 3.0, "sampler": "dpmsolver++", "eta": 0.0}
    named = {name: asked[name] for name in ("steps", "guidance", "sampler")}
    found = generator.sample(4, **named, options={"eta": 0.0})
    assert np.array_equal(found, generator.sample(4, options=asked))
    with pytest.raises(ConfigError, match="steps: given twice"):
        generator.sample(4, steps=4, options={"steps": 4})
    with pytest.raises(ConfigError, match="steps"):
        generator.sample(4, steps=0)


def test_progress_counts_to_the_end(generator: Generator) -> None:
    seen: list[tuple[int, int]] = []
    generator.sample(150, progress=lambda done, num: seen.append((done, num)))
    assert seen == [(64, 150), (128, 150), (150, 150)]


def test_images_are_bytes_in_rows_and_columns(reference: np.ndarray) -> None:
    assert reference.shape == (150, 8, 8, 1)
    assert reference.dtype == np.uint8
    assert reference.std() > 5


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([], "got an empty list"),
        ("z", "z is not a class"),
        ([0, 1.5], "1.5 is not a class"),
        (True, "True is not a class"),
        ([0, 1, 3], "3 is not a class of this model; it has 0 to 2 .*a, b, c"),
        ([0, -1, 1], "-1 is no"),
    ],
)
def test_labels_that_do_not_fit(generator: Generator, labels: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        generator.sample(3, labels=labels)


@pytest.mark.parametrize("bad", [{"num": 0}, {"num": -1}, {"num": 3, "batch_size": 0}])
def test_counts_below_one(generator: Generator, bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        generator.sample(**bad)


def test_arguments_are_checked_before_the_first_image(generator: Generator) -> None:
    with pytest.raises(ConfigError):
        generator.batches(3, labels=[9, 9, 9])


def test_a_block_starts_at_a_multiple(generator: Generator) -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        generator.sample_block(10, seed=0, conditions={}, options=generator.options())


def test_an_unconditional_model_takes_no_labels() -> None:
    config = DiffusionConfig.tiny().model_copy(
        update={"condition": "none", "sampling": DDPMSampling(steps=2)}
    )
    with seeded(0):
        net = config.build(DATA).nets["network"].build()
    model = Generator(config, DATA, {"ema": net})
    assert model.conditions_of({}, range(5)) == {}
    assert model.sample(2).shape == (2, 8, 8, 1)
    with pytest.raises(ConfigError, match="takes none"):
        model.sample(2, labels=[0, 1])
    with pytest.raises(ConfigError, match="guidance"):
        model.sample(2, options={"guidance": 2})


@pytest.mark.parametrize(
    ("channels", "side", "rows"), [(1, 8, 64), (3, 64, 64), (3, 128, 16), (3, 256, 4), (3, 1024, 1)]
)
def test_large_images_come_in_small_blocks(channels: int, side: int, rows: int) -> None:
    assert block_rows(DataSpec(channels, side, side)) == rows
