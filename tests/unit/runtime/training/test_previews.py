"""Previews give a model the conditions that it takes, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec
from sfumato.core.family import Nets, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.family import DiffusionFamily
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.provenance.filters import Classifier, FilterConfig, Images, Scores
from sfumato.provenance.metadata import TRAINED, read_xmp
from sfumato.provenance.noises import NOISES
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training.previews import Previews, preview
from sfumato.sampling.grid import GAP, SMALLEST_TILE
from sfumato.training.loop import install

DATA = DataSpec(1, 8, 8, ("a", "b", "c"))


class Watched(DiffusionFamily):
    """The family, with a note of what it is asked for."""

    asked: list[Mapping[str, Any]]

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        self.asked.append(request.conditions)
        return super().sample(nets, request, progress, rng)


def asked(tmp_path: Path, condition: str, **train: Any) -> list[Mapping[str, Any]]:
    model = {**DiffusionConfig.tiny().model_dump(), "condition": condition}
    content = {"name": "x", "data": {"path": str(tmp_path)}, "model": model}
    recipe: Recipe = recipes.parse(
        {**content, "train": {"images": 8, "batch": 8, "preview_samples": 5, **train}}
    )
    assert isinstance(recipe.model, DiffusionConfig)
    family = Watched(recipe.model, DATA)
    family.asked = []
    strategy = Single(Placement())
    install(family, strategy, 0)
    Previews(recipe, family, strategy, DATA, RunFolder(tmp_path), None)(Progress(0, 0, 8, 8))
    return family.asked


def test_an_unconditional_model_is_never_handed_labels(tmp_path: Path) -> None:
    assert asked(tmp_path, "none") == [{}]


@pytest.mark.parametrize(
    ("labels", "wanted"), [((), [0, 1, 2, 0, 1]), (("b",), [1] * 5), (("c", "0"), [2, 0, 2, 0, 2])]
)
def test_classes_take_turns_or_are_those_of_the_recipe(
    tmp_path: Path, labels: tuple[str, ...], wanted: list[int]
) -> None:
    (conditions,) = asked(tmp_path, "class", preview_conditions={"labels": list(labels)})
    assert conditions["label"].tolist() == wanted


class Begun(DiffusionFamily):
    """The family, which keeps the noise that its samples begin with."""

    noise: Tensor

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        self.noise = rng.beginning(1, 16, 16)
        return self.noise.clamp(-1, 1)


def test_previews_begin_in_marked_noise(tmp_path: Path) -> None:
    data, noise = DataSpec(1, 16, 16), NOISES.make("gaussian_shading", secret="s")
    model = {**DiffusionConfig.tiny().model_dump(), "condition": "none"}
    recipe: Recipe = recipes.parse(
        {
            "name": "x",
            "data": {"path": str(tmp_path)},
            "model": {**model, "sampling": {"sampler": "ddim", "steps": 3}},
            "train": {"images": 8, "batch": 8, "preview_samples": 3},
            "provenance": {"noise": noise.model_dump()},
        }
    )
    assert isinstance(recipe.model, DiffusionConfig)
    family, strategy = Begun(recipe.model, data), Single(Placement())
    install(family, strategy, 0)
    Previews(recipe, family, strategy, data, RunFolder(tmp_path), None)(Progress(0, 0, 8, 8))
    mark = noise.build((1, 16, 16))
    assert all(mark.detect(one).p_value < 1e-5 for one in family.noise)


class AnyConfig(FilterConfig):
    """Stands for a classifier that finds something in every image."""

    def build(self) -> Classifier:
        return Any_()


class Any_(Classifier):
    def scores(self, images_NHWC: Images) -> Scores:
        return np.ones(len(images_NHWC), np.float32)


class Tracker:
    """Keeps what MLflow would get."""

    def __init__(self) -> None:
        self.curves: dict[str, float] = {}
        self.files: list[bytes] = []

    def image(self, name: str, content: bytes, step: int) -> None:
        self.files.append(content)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.curves |= values


def test_previews_leave_by_the_door_and_the_filter_is_counted(tmp_path: Path) -> None:
    model = {**DiffusionConfig.tiny().model_dump(), "condition": "none"}
    found = {"kind": f"{__name__}:AnyConfig", "threshold": 0.5}
    recipe: Recipe = recipes.parse(
        {
            "name": "x",
            "data": {"path": str(tmp_path)},
            "model": model,
            "train": {"images": 8, "batch": 8, "preview_samples": 4},
            "provenance": {"metadata": True, "filter": {"images": found, "action": "replace"}},
        }
    )
    family, strategy, tracker = recipe.model.build(DATA), Single(Placement()), Tracker()
    install(family, strategy, 0)
    Previews(recipe, family, strategy, DATA, RunFolder(tmp_path), tracker)(Progress(0, 0, 8, 8))  # type: ignore[arg-type]
    assert {name: tracker.curves[f"filter/previews/{name}"] for name in ("images", "found", "replace")} == {
        "images": 4,
        "found": 4,
        "replace": 4,
    }
    (path,) = (tmp_path / "previews").iterdir()
    content = path.read_bytes()
    assert tracker.files == [content]
    assert read_xmp(path)["DigitalSourceType"] == TRAINED
    with Image.open(path) as picture:
        assert len(np.unique(np.asarray(picture))) <= 2, "grey tiles on the grid's ground"


def test_prompts_stand_beside_their_samples() -> None:
    """A row for each of two prompts; without prompts the grid is a plain one."""
    model = DiffusionConfig.tiny().model_copy(update={"condition": "none"})
    family, strategy = DiffusionFamily(model, DATA), Single(Placement())
    install(family, strategy, 0)

    def drawn(prompts: tuple[str, ...]) -> Any:
        return preview(
            family,
            strategy,
            lambda rows: {},
            model.sampling.model_copy(update={"guidance": 1.0}),
            Progress(0, 0, 8, 8),
            num=4,
            seed=0,
            prompts=prompts,
        )

    told, plain = drawn(("a red circle", "two blue squares")), drawn(())
    assert plain.width == plain.height == 2 * (SMALLEST_TILE + GAP) + GAP
    assert told.height == 2 * (2 * SMALLEST_TILE + GAP) + GAP < told.width, "twice the size, and texts"
