"""Figures that say little: how they are marked, and that they decide nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from sfumato.core.batch import DataSpec
from sfumato.errors import ConfigError
from sfumato.evaluation.compare.entries import entries
from sfumato.evaluation.compare.runs import EvaluatedRun
from sfumato.evaluation.compare.table import as_data, rows
from sfumato.evaluation.compute import measure
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.decisions.early_stopping import BestSettings, best_of
from sfumato.evaluation.decisions.weakness import lines, of_features, of_noise, of_samples
from sfumato.evaluation.features.extractor import Extracted
from sfumato.evaluation.intervals.uncertainty import IntervalSettings
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.noise import noise_on
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.report import WEAK, EvaluationReport, read_report
from sfumato.runtime.commands import printed
from sfumato.runtime.commands.compare import compare
from sfumato.runtime.pipeline.kinds.gate import GateStage
from sfumato.runtime.runs.display import Display
from sfumato.runtime.training.validation import EvaluationRecord

DIGITS = DataSpec(1, 8, 8, tuple("0123456789"))
PHOTOS = DataSpec(3, 32, 32, tuple("0123456789"))
MARK = "features classifier recognise 0.559 of held-out images, below 0.9"


def report(value: float = 0.94, *, weak: bool = True, accept: bool = False) -> EvaluationReport:
    return EvaluationReport(
        metrics={"precision": value, "fd_inception": 3.0},
        details={},
        features={"classifier": {"digest": "c", "dim": 64}},
        higher_is_better={"precision": True, "fd_inception": False},
        samples=64,
        reference_samples=64,
        reference_digest="r",
        seed=0,
        seconds=1.0,
        seconds_per_image=1.0,
        preview=None,
        computed_on={"precision": ("precision", "classifier")},
        intervals={"precision": {"low": value - 0.01, "high": value + 0.01, "stderr": 0.005, "method": "m"}},
        marks={"precision": (MARK,)} if weak else {},
        accept_weak_features=accept,
    )


@pytest.mark.parametrize(("accuracy", "weak"), [(0.559, True), (0.8999, True), (0.9, False), (0.99, False)])
def test_features_that_fail_on_held_out_images_are_weak(accuracy: float, weak: bool) -> None:
    assert bool(of_features("classifier", {"held_out_accuracy": accuracy})) is weak
    assert of_features("efficientnet_lite0", {"weights_sha256": "x"}) == ()


def test_the_mark_of_a_covariance_is_where_numpy_finds_it_singular() -> None:
    rng = np.random.default_rng(0)
    for samples in range(2, 9):
        rank = np.linalg.matrix_rank(np.cov(rng.normal(size=(samples, 5)).T))
        assert bool(of_samples(samples, 5)) is bool(rank < 5)


def test_marks_of_features_and_of_samples_reach_the_figures_that_they_concern() -> None:
    settings = EvaluateSettings(features="classifier", metrics=("fd", "precision", "intra_fd", "fd_infinity"))
    selection = settings.select(DIGITS, conditional=True)
    rng = np.random.default_rng(0)

    def features(rows: int) -> FeatureSet:
        x = rng.normal(size=(rows, 64)).astype(np.float32)
        return FeatureSet(x, label_N=np.arange(rows, dtype=np.int64) % 10)

    sets = {"classifier": features(700)}, {"classifier": features(600)}
    off = IntervalSettings(enabled=False)
    found = measure(selection, *sets, {}, intervals=off, seed=0)
    # 600 samples are enough for 64 dimensions; 60 of a class, and the first tenth, are not.
    assert found.marks == {
        "intra_fd_classifier": ("60 samples for a covariance of 64 dimensions",),
        "fd_infinity_classifier": ("60 samples for a covariance of 64 dimensions",),
    }
    weak = measure(selection, *sets, {}, intervals=off, seed=0, weak={"classifier": (MARK,)})
    assert set(weak.marks) == {*found.marks, "fd_classifier", "precision"}
    assert weak.marks["intra_fd_classifier"] == (MARK, *found.marks["intra_fd_classifier"])
    assert weak.values == found.values


def test_what_takes_noise_for_real_images_is_weak() -> None:
    """Noise amid the real images has their precision and density; far from them, it has none."""
    settings = EvaluateSettings(features="thumbnail", metrics=("precision", "recall", "density", "coverage"))
    selection = settings.select(DIGITS, conditional=False)
    rng = np.random.default_rng(0)

    def at(place: float, rows: int = 200) -> FeatureSet:
        return FeatureSet((place + rng.normal(size=(rows, 8))).astype(np.float32))

    sets, off = ({"thumbnail": at(0.0)}, {"thumbnail": at(0.0)}), IntervalSettings(enabled=False)
    amid = measure(selection, *sets, {}, intervals=off, seed=0, noise=lambda name: at(0.0, 32))
    assert set(amid.marks) == {"precision", "density"}
    assert amid.marks["precision"][0].startswith("uniform noise gets ")
    apart = measure(selection, *sets, {}, intervals=off, seed=0, noise=lambda name: at(50.0, 32))
    assert apart.marks == {} and apart.values == amid.values
    assert of_noise("thumbnail", 0.049) == ()


def test_noise_is_uniform_the_same_every_time_and_made_once() -> None:
    seen: list[np.ndarray] = []

    class Pixels:
        name = "pixels"

        def extract(self, images_NHWC: np.ndarray) -> Extracted:
            seen.append(images_NHWC)
            return Extracted(images_NHWC.reshape(len(images_NHWC), -1).astype(np.float32), None)

    extractor: Any = Pixels()
    noise = noise_on([extractor], DIGITS, MetricOptions(k=20))
    assert noise("pixels") is noise("pixels") and len(seen) == 1
    assert seen[0].shape == (40, 8, 8, 1), "more than there are neighbours"
    assert stats.kstest(seen[0].ravel() / 256, "uniform").pvalue > 0.01
    again = noise_on([extractor], DIGITS, MetricOptions(k=20))("pixels")
    np.testing.assert_array_equal(again.embedding_ND, noise("pixels").embedding_ND)


def test_a_report_keeps_its_marks_and_tells_mlflow(tmp_path: Path) -> None:
    weak = report()
    weak.write(tmp_path)
    read = read_report(tmp_path)
    assert read.fit == weak.fit == {"fd_inception": 3.0}
    assert read.tags()["sfumato.eval.precision"] == f"classifier, c, weak: {MARK}"
    assert read.tags()[WEAK] == "precision"
    assert report(weak=False).tags()[WEAK] == "none", "a tag of an earlier evaluation is overwritten"
    assert set(report(accept=True).fit) == {"precision", "fd_inception"}


def test_the_printed_table_says_it() -> None:
    evaluated = {"metrics": {"precision": 0.94, "recall": 0.5}, "samples": 64, "weak": {"precision": [MARK]}}
    assert printed.figures(evaluated) == {"precision": "0.9400  weak", "recall": "0.5000", "samples": "64"}
    assert printed.weak_lines(evaluated) == [f"weak: precision: {MARK}"]
    assert lines({"precision": [MARK], "recall": [MARK]}) == [f"precision, recall: {MARK}"]


def test_a_weak_figure_is_never_the_best_checkpoint_unless_accepted() -> None:
    records = [
        EvaluationRecord(100, 0.0, 64, {"precision": 0.5}, {"precision": True}),
        EvaluationRecord(200, 0.0, 64, {"precision": 0.94}, {"precision": True}, marks={"precision": [MARK]}),
    ]
    for accepted, images in ((False, 100), (True, 200)):
        settings = EvaluateSettings(accept_weak_features=accepted)
        best = best_of([record.point(settings) for record in records], BestSettings(metric="precision"))
        assert best is not None
        assert best.images == images


def run(name: str, shown: EvaluationReport, folder: Path) -> EvaluatedRun:
    return EvaluatedRun(name, folder, folder, shown, FeatureCache(folder), {})


def test_compare_shows_weak_figures_and_ranks_the_others(tmp_path: Path) -> None:
    runs = [run("weak", report(0.94), tmp_path), run("a", report(0.6, weak=False), tmp_path)]
    (cells,) = (
        row.cells
        for row in rows(entries(runs, group_seeds=False), comparable=True)
        if row.metric == "precision"
    )
    assert not any(cell.best for cell in cells), "one fit run is no comparison"
    runs.append(run("b", report(0.7, weak=False), tmp_path))
    shown = entries(runs, group_seeds=False)
    found = as_data(rows(shown, comparable=True), shown)["precision"]
    assert [found[name]["best"] for name in ("weak", "a", "b")] == [False, False, True]
    assert found["weak"]["weak"] == [MARK]
    assert found["weak"]["p_against_best"] is None
    assert rows(shown, comparable=True)[0].cells[0].text.endswith(" weak")


def test_compare_notes_them_and_marks_the_page(tmp_path: Path) -> None:
    words = []
    for name, weak in (("one", True), ("two", False)):
        (tmp_path / name).mkdir()
        report(weak=weak).write(tmp_path / name)
        words.append(str(tmp_path / name))
    console = Console(record=True, width=200, file=io.StringIO())
    page = tmp_path / "page.html"
    data, _ = compare(words, out=page, root=tmp_path, display=Display(console))
    assert data["weak"] == [f"one: precision: {MARK}"]
    assert f"weak figures: one: precision: {MARK}" in console.export_text()
    assert "not ranked unless evaluate.accept_weak_features is set: one: precision" in page.read_text()


def gate(tmp_path: Path, shown: EvaluationReport, **fields: Any) -> GateStage:
    shown.write(tmp_path)
    return GateStage(kind="gate", report=str(tmp_path), model="m", name="n", **fields)


def test_a_gate_refuses_a_weak_figure_in_one_line(tmp_path: Path) -> None:
    for fields in ({"require": ("precision > 0.9",)}, {"better": ("precision",)}):
        stage = gate(tmp_path, report(), **fields)
        with pytest.raises(
            ConfigError, match=r"gate: precision is weak \(features classifier rec"
        ) as refused:
            stage._known(read_report(tmp_path))
        assert "\n" not in str(refused.value)
        assert "evaluate.accept_weak_features=true" in str(refused.value)
    gate(tmp_path, report(accept=True), require=("precision > 0.9",))._known(read_report(tmp_path))


def test_what_can_be_known_beforehand_is_refused_beforehand() -> None:
    chosen = {"every": 100, "best": {"metric": "fd_efficientnet_lite0"}, "samples": 5_000}
    few = {**chosen, "samples_during": 1_000}
    (line,) = EvaluateSettings.model_validate(few).problems(PHOTOS)
    assert line.startswith(
        "evaluate.best.metric: fd_efficientnet_lite0 is weak (1,000 samples for a covariance of 1,280 "
        "dimensions) and decides nothing: raise the number of images"
    )
    assert line.endswith("or set evaluate.accept_weak_features=true")
    assert EvaluateSettings.model_validate(few | {"accept_weak_features": True}).problems(PHOTOS) == []
    assert EvaluateSettings.model_validate(chosen).problems(PHOTOS) == []
    (line,) = EvaluateSettings.model_validate(chosen).problems(PHOTOS, images=900)
    assert "900 samples" in line, "the reference has as few"
    by_precision = few | {"best": {"metric": "precision"}}
    assert EvaluateSettings.model_validate(by_precision).problems(PHOTOS) == []
