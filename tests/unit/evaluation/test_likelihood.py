"""Bits per dimension: of images that were not trained on, or under a name that nothing is chosen by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.decisions.checks import selected
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.metric_inputs import Made, Setting
from sfumato.evaluation.metric_options import MetricOptions
from sfumato.evaluation.metrics import likelihood
from sfumato.evaluation.metrics.metric import MetricResult
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.references.reference import PackedReference, Reference
from sfumato.evaluation.report import read_report
from sfumato.evaluation.subjects.model_sources import load_model
from sfumato.evaluation.subjects.source import GivesLikelihood, SampleSource
from sfumato.families.autoregressive import Config
from sfumato.sampling.model_folder import save_model_folder

DIGITS = DataSpec(1, 8, 8, tuple("0123456789"))
ASKED: dict[str, Any] = {"metrics": ("bits_per_dim",), "likelihood_images": 16}


@pytest.fixture(scope="module")
def reference(digits_data: Path) -> Reference:
    return PackedReference(digits_data)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 images of ten classes that nothing was trained on."""
    folder = tmp_path_factory.mktemp("others")
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)):
        (folder / f"{number % 10}").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{number % 10}" / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def model(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config.tiny()
    with seeded(0):
        net = config.build(DIGITS).nets["network"].build()  # type: ignore[union-attr]
    folder = tmp_path_factory.mktemp("likelihood") / "run" / "model"
    save_model_folder(
        folder,
        config,
        DIGITS,
        {"ema": net.state_dict()},
        name="tiny",
        progress=Progress.at(10),
        trained_on=reference.digest,
    )
    return folder


def source_of(
    model: Path, reference: Reference, sampling: Mapping[str, object] | None = None
) -> SampleSource:
    return load_model(model, sampling or {}, device="cpu", trust=False, reference=reference)


def measured(settings: EvaluateSettings, model: Path, reference: Reference) -> tuple[str, MetricResult]:
    """The figure's name and value, as an evaluation comes to them."""
    source = source_of(model, reference, settings.sampling)
    ((metric, _, name),) = selected(settings, source, reference).metrics
    (wanted,) = metric.inputs
    opened = wanted.open(settings, MetricOptions(), reference)
    cache = FeatureCache(model.parent / "cache")
    prepared = wanted.prepare(Setting(settings, MetricOptions(), source, reference, (), cache), opened)
    bits_N = prepared.block(source, 0, seed=0, labels_B=None)[: prepared.rows]
    real = FeatureSet(np.zeros((len(bits_N), 1), np.float32))
    filled = prepared.of_reference(real, "any", Made(bits_N, lambda name: None))
    return name, metric.compute(filled, real, MetricOptions())


@pytest.mark.parametrize("sampling", [{}, {"decoding": "cache"}])
def test_on_the_training_images_the_figure_has_another_name(
    model: Path, reference: Reference, sampling: dict[str, object]
) -> None:
    name, result = measured(EvaluateSettings(**ASKED, sampling=sampling), model, reference)
    assert name == "train_bits_per_dim" and result.details["on"] == "training images"


def test_it_is_measured_on_the_images_that_are_named(model: Path, reference: Reference, others: Path) -> None:
    settings = EvaluateSettings(**ASKED, likelihood_on=str(others))
    name, result = measured(settings, model, reference)
    assert (name, result.details["on"]) == ("bits_per_dim", "images that were not trained on")
    source, held_out = source_of(model, reference), likelihood.images_at(str(others), reference)
    assert isinstance(source, GivesLikelihood)
    expected = source.bits(0, held_out.read(0, 16), seed=0, images=held_out).mean()
    assert result.value == pytest.approx(expected)
    assert measured(EvaluateSettings(**ASKED), model, reference)[1].value != pytest.approx(expected)


def test_another_reference_than_the_training_data_is_held_out(
    model: Path, reference: Reference, others: Path
) -> None:
    held_out = likelihood.images_at(str(others), reference)
    assert measured(EvaluateSettings(**ASKED), model, held_out)[0] == "bits_per_dim"


def test_training_images_and_missing_ones_are_refused(
    model: Path, reference: Reference, digits_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"likelihood_on=.* is what the model is trained on"):
        measured(EvaluateSettings(**ASKED, likelihood_on=str(digits_data)), model, reference)
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(DataError, match=r"the model has 10 classes and the images of .* 0: name images with"):
        measured(EvaluateSettings(**ASKED, likelihood_on=str(tmp_path)), model, reference)
    with pytest.raises(DataError, match=r"evaluate.likelihood_on: .*no such file.*put images there"):
        measured(EvaluateSettings(**ASKED, likelihood_on=str(tmp_path / "none")), model, reference)


@pytest.mark.parametrize("figure", ["bits_per_dim", "train_bits_per_dim"])
@pytest.mark.parametrize("field", ["best", "early_stop"])
def test_nothing_is_chosen_by_training_images(field: str, figure: str) -> None:
    given: dict[str, Any] = {"every": 64, field: {"metric": figure}}
    line = f"evaluate.{field}: {figure} is of training images, which favours"
    (problem,) = EvaluateSettings(**given).problems(DIGITS)
    assert problem.startswith(line) and "set evaluate.likelihood_on" in problem
    known = EvaluateSettings(**given, likelihood_on="data/test").problems(DIGITS)
    assert known == [] if figure == "bits_per_dim" else "no 'train_bits_per_dim'" in known[0]


def test_a_set_that_nothing_reads_is_a_mistake() -> None:
    (problem,) = EvaluateSettings(metrics="recall", likelihood_on="data/test").problems(DIGITS)
    assert problem.startswith("evaluate.likelihood_on is read by bits_per_dim alone")


@pytest.mark.parametrize("trained", [True, False])
def test_a_report_of_version_0_1_tells_the_two_apart(
    model: Path, reference: Reference, trained: bool
) -> None:
    folder = model.parent / "evaluation"
    folder.mkdir(exist_ok=True)
    content = {
        "metrics": {"bits_per_dim": 3.0, "recall": 0.5},
        "details": {"bits_per_dim": {"images": 16}, "recall": {}},
        "intervals": {"bits_per_dim": {"low": 2.0, "high": 4.0}},
        "higher_is_better": {"bits_per_dim": False, "recall": True},
        "reference_digest": reference.digest if trained else "0" * 64,
        "features": {},
        "samples": 2,
        "reference_samples": 2,
        "seed": 0,
        "seconds": 1.0,
        "seconds_per_image": 0.1,
        "preview": None,
    }
    (folder / "report.json").write_text(json.dumps(content))
    name = "train_bits_per_dim" if trained else "bits_per_dim"
    report = read_report(folder)
    assert dict(report.metrics) == {name: 3.0, "recall": 0.5}
    assert report.higher_is_better[name] is False and report.intervals[name]["low"] == 2.0
