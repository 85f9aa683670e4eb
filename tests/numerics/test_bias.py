"""Shares against targets: intervals by definition and by simulation, known shares of classes and shapes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare
from tiny_evaluation import settings

from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.shapes import ShapesSource
from sfumato.errors import ConfigError
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.intervals.shares import compared, intervals
from sfumato.evaluation.metrics.bias import Bias
from sfumato.evaluation.metrics.metric import MetricOptions, MetricSettings
from sfumato.evaluation.stage import evaluate
from sfumato.evaluation.subjects.images import open_images


def test_of_two_values_the_interval_is_wilsons() -> None:
    low, high = intervals(np.array([7, 33]))
    wilson = binomtest(7, 40).proportion_ci(0.95, method="wilson")
    assert (low[0], high[0]) == pytest.approx((wilson.low, wilson.high))


def test_of_several_all_hold_at_once() -> None:
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.3, 0.15, 0.05])
    held = 0
    for counts in rng.multinomial(300, share, size=500):
        low, high = intervals(counts)
        held += bool(((low <= share) & (share <= high)).all())
    assert 0.93 <= held / 500 <= 0.995


def test_comparison_says_what_is_beyond_chance() -> None:
    target = np.array([0.25, 0.25, 0.25, 0.25])
    counts = np.array([180, 90, 68, 62])
    found = compared(counts, target, list("abcd"), seed=0)
    assert found["distance"] == pytest.approx(0.2)
    assert found["p"] == pytest.approx(chisquare(counts).pvalue)
    assert found["beyond"] == ["a", "c", "d"]
    # E|X - np| of a binomial is about sqrt(2 np(1 - p) / pi), so half the sum over four shares of it:
    assert found["by_chance"] == pytest.approx(2 * math.sqrt(2 * 0.1875 / (math.pi * 400)), rel=0.05)
    fair = compared(np.array([100, 99, 101, 100]), target, list("abcd"), seed=0)
    assert fair["beyond"] == [] and fair["p"] > 0.9
    assert compared(np.array([5, 5]), np.array([1.0, 0.0]), ["a", "b"], seed=0)["p"] == 0.0


def chosen(target: dict[str, float]) -> MetricSettings:
    """The settings that recipes have, with this target."""
    return settings(metric_options={"bias_target": target}).metric_options


def sets(samples: list[int], asked: list[int] | None = None) -> tuple[FeatureSet, FeatureSet]:
    """Real images of three classes in shares 1/2, 1/4, 1/4, and samples that are seen as these classes."""
    eye = np.eye(3, dtype=np.float32)
    real = np.repeat([0, 1, 2], [100, 50, 50])
    labels = None if asked is None else np.array(asked)
    made = FeatureSet(np.zeros((len(samples), 2), np.float32), eye[samples], labels)
    return FeatureSet(np.zeros((200, 2), np.float32), eye[real], real), made


def test_classes_are_compared_with_the_data_or_a_target_and_by_group() -> None:
    samples = [0] * 60 + [1] * 20 + [2] * 20
    reference, made = sets(samples, asked=[0] * 50 + [1] * 30 + [2] * 20)
    result = Bias().compute(reference, made, MetricOptions())
    assert result.value == pytest.approx((0.1 + 0.05 + 0.05) / 2)
    groups = result.details["groups"]
    assert isinstance(groups, dict)
    assert groups["1"]["shares"]["0"]["share"] == pytest.approx(1 / 3)
    assert groups["1"]["shares"]["0"]["target"] == 0
    assert groups["2"]["distance"] == 0 and "0" in groups["1"]["beyond"]
    wanted = MetricOptions(settings=chosen({"0": 0.6, "1": 0.2, "2": 0.2}))
    assert Bias().compute(reference, made, wanted).value == pytest.approx(0)
    for target, said in (({"7": 1.0}, "'7' is no class"), ({"0": 0.5}, "add up to 1, got 0.5")):
        with pytest.raises(ConfigError, match=said):
            Bias().compute(reference, made, MetricOptions(settings=chosen(target)))


def test_attributes_of_shapes_that_were_left_out_are_found(tmp_path: Path) -> None:
    """Pictures with fewer red objects than the data's, read by the checker."""
    pack(ShapesSource(images=160, seed=1, size=32), tmp_path / "real")
    pack(ShapesSource(images=120, seed=2, size=32), tmp_path / "made")
    from sfumato.data.shapes.checker import Checker

    images = open_images(str(tmp_path / "made"))
    pixels = images.read(0, 120)[0]
    kept = [
        row
        for row, contents in enumerate(Checker(32).read(pixels))
        if contents is not None and all(thing.colour != "red" for thing in contents.things)
    ]
    np.savez(tmp_path / "kept.npz", images=pixels[kept])
    report = evaluate(
        Evaluation.of_images(
            settings(samples=len(kept), metrics="attribute_bias", features="thumbnail", preview=0),
            images=open_images(str(tmp_path / "kept.npz")),
            reference=open_images(str(tmp_path / "real")),
            out=tmp_path / "out",
            cache=tmp_path / "cache",
        )
    )
    details = report.details["attribute_bias"]
    colours = details["attributes"]["colour"]  # type: ignore[index]
    assert colours["shares"]["red"]["share"] == 0 and "red" in colours["beyond"]
    assert colours["p"] < 0.05
    shapes = details["attributes"]["shape"]  # type: ignore[index]
    assert shapes["shares"]["circle"]["target"] > 0.05
    assert 0 < report.metrics["attribute_bias"] < 0.5
    assert "dependent" in str(details["no_interval"])
