"""Alignment through the stage: pictures with their captions, with others' captions, and noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.config import Config
from sfumato.core.family import FamilyConfig, Frozen, Nets, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.shapes import ShapesSource
from sfumato.data.shapes.claims import claim_of
from sfumato.data.shapes.phrases import captions
from sfumato.data.shapes.rendering import render
from sfumato.data.shapes.scenes import scenes
from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.report import EvaluationReport
from sfumato.evaluation.stage import evaluate
from sfumato.evaluation.subjects.image_set import ImageBlock
from sfumato.evaluation.subjects.model_sources import GeneratorSource
from sfumato.sampling.generator import Generator

IMAGES = 140


class Shuffled(PackedReference):
    """Every picture with the caption of the next one."""

    def captions(self, first: int, stop: int) -> list[str]:
        texts = super().captions(0, self.size)
        return [texts[(row + 1) % self.size] for row in range(first, stop)]


class Noise(PackedReference):
    """The captions, with noise for pictures."""

    def _read(self, first: int, stop: int) -> ImageBlock:
        rng = np.random.default_rng(first)
        return rng.integers(0, 256, (stop - first, 32, 32, 3), dtype=np.uint8), None


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "both"
    pack(ShapesSource(images=IMAGES, seed=3, part="both", columns={}), folder)
    return folder


def measured(images: PackedReference, out: Path, *metrics: str) -> EvaluationReport:
    settings = EvaluateSettings(
        samples=IMAGES,
        actors=0,
        features="thumbnail",
        metrics=metrics or ("alignment", "alignment_held_out"),
        preview=0,
    )
    return evaluate(
        Evaluation.of_images(settings, images=images, reference=images, out=out, cache=out / "cache")
    )


def test_real_pictures_show_their_captions(shapes: Path, tmp_path: Path) -> None:
    report = measured(PackedReference(shapes), tmp_path)
    assert report.metrics["alignment"] == report.metrics["alignment_held_out"] == 1
    claims = [claim_of(text) for text in PackedReference(shapes).captions(0, IMAGES)]
    for figure, held_out in (("alignment", False), ("alignment_held_out", True)):
        categories: Any = report.details[figure]["categories"]
        counted = [c.category for c in claims if c is not None and c.held_out is held_out]
        assert {name: each["images"] for name, each in categories.items()} == {
            name: counted.count(name) for name in set(counted)
        }
        assert report.intervals[figure]["method"] == "Wilson score"
    assert len(report.details["alignment"]["categories"]) == 7  # type: ignore[arg-type]


def test_with_captions_of_others_few_are_right(shapes: Path, tmp_path: Path) -> None:
    report = measured(Shuffled(shapes), tmp_path)
    assert report.metrics["alignment"] < 0.15
    assert report.metrics["alignment_held_out"] < 0.15
    shares: Any = report.details["alignment"]["categories"]
    for each in shares.values():
        low, high = stats.binomtest(
            round(each["share"] * each["images"]), each["images"]
        ).proportion_ci(0.95, "wilson")  # fmt: skip
        assert (each["low"], each["high"]) == (pytest.approx(low), pytest.approx(high))


def test_noise_shows_nothing(shapes: Path, tmp_path: Path) -> None:
    report = measured(Noise(shapes), tmp_path)
    assert report.metrics["alignment"] == report.metrics["alignment_held_out"] == 0


class Drawing(Config):
    """How pictures are drawn."""

    reads: bool = True


class DrawerConfig(FamilyConfig):
    """A model that draws what its caption says, or, if it cannot read, always the same picture."""

    family: Literal["drawer"] = "drawer"
    sampling: Drawing = Drawing()

    def build(self, data: DataSpec) -> Drawer:
        return Drawer()

    @classmethod
    def tiny(cls) -> DrawerConfig:
        return cls()

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        return (Condition("text", "text", "text", required=True),)


class Drawer:
    """Implements `core.family.Family`: knows a picture for every first caption of the set."""

    samplers = ("pen",)
    phases = ()

    def __init__(self) -> None:
        drawn = scenes(3, np.arange(IMAGES), "both", 32)
        pictures = torch.from_numpy(render(drawn).image).permute(0, 3, 1, 2).float() / 127.5 - 1
        self._known = {texts[0]: picture for texts, picture in zip(captions(drawn, 3), pictures, strict=True)}
        self.nets: Mapping[str, Any] = {"pen": Frozen(build=nn.Identity)}

    def prepare(self, nets: Nets, batch: Any, progress: Progress, rng: Any) -> Any:
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        texts = request.texts("text")
        assert texts is not None and isinstance(request.options, Drawing)
        any_one = next(iter(self._known.values()))
        drawn = [self._known[text] if request.options.reads else any_one for text in texts]
        return (torch.stack(drawn) + 0.05 * rng.normal(3, 32, 32)).clamp(-1, 1)


@pytest.mark.parametrize("reads", [True, False])
def test_samples_are_judged_by_the_captions_that_they_were_drawn_for(
    reads: bool, shapes: Path, tmp_path: Path
) -> None:
    reference = PackedReference(shapes)
    generator = Generator(DrawerConfig(), DataSpec(3, 32, 32), {"pen": nn.Identity()}, digest="drawer")

    def load(folder: Path, sampling: Mapping[str, Any]) -> GeneratorSource:
        return GeneratorSource(generator, sampling, "cpu", reference)

    settings = EvaluateSettings(
        samples=IMAGES,
        actors=0,
        features="thumbnail",
        metrics=("alignment", "alignment_held_out"),
        sampling={"reads": reads},
        preview=0,
    )
    report = evaluate(
        Evaluation(
            settings, load, model_folder=shapes, reference=reference, out=tmp_path, cache=tmp_path / "c"
        )
    )
    for figure in ("alignment", "alignment_held_out"):
        assert report.metrics[figure] == 1 if reads else report.metrics[figure] < 0.1


def test_what_cannot_be_judged_is_said_first(shapes: Path, tmp_path: Path, digits_data: Path) -> None:
    class Told(PackedReference):
        def captions(self, first: int, stop: int) -> list[str]:
            return ["a dog on a beach"] * (stop - first)

    with pytest.raises(DataError, match="captions of the source shapes, and the reference's are of another"):
        measured(Told(shapes), tmp_path / "told")
    with pytest.raises(ConfigError, match="in colour and 32x32 to 256x256; this data is 8x8 with 1 channel"):
        measured(PackedReference(digits_data), tmp_path / "digits", "alignment")
    pack(ShapesSource(images=20, columns={}), tmp_path / "seen")
    with pytest.raises(DataError, match="alignment_held_out: none of the captions has combinations held out"):
        measured(PackedReference(tmp_path / "seen"), tmp_path / "out", "alignment_held_out")
