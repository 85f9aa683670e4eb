"""Extraction of training images, against the paper's rule written as loops, and with planted copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import hypergeom
from tiny_evaluation import settings

from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.metrics.extraction import Extraction, ExtractionExcess, cliques, extracted
from sfumato.evaluation.metrics.metric import MetricOptions
from sfumato.evaluation.report import EvaluationReport
from sfumato.evaluation.small_pictures import NAME, SmallPictures, small
from sfumato.evaluation.stage import evaluate
from sfumato.evaluation.subjects.images import open_images

Pixels = NDArray[np.uint8]


def pictures(seed: int, count: int, dim: int = 48) -> Pixels:
    """Smooth random vectors: neighbours are at all distances, as those of pictures are."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)) @ np.random.default_rng(9).normal(size=(6, dim)) * 18 + 128
    return (x + rng.normal(size=x.shape) * 4).clip(0, 255).astype(np.uint8)


def by_loops(samples: Pixels, training: Pixels, alpha: float, n: int) -> list[tuple[bool, int]]:
    """|x - y| <= alpha mean |x - y_j| over the n nearest different training images, y the first of them."""
    different = np.unique(training, axis=0)
    found = []
    for x in samples:
        distance = np.linalg.norm(different.astype(float) - x.astype(float), axis=1)
        order = np.argsort(distance)
        nearest = different[order[0]]
        row = next(row for row in range(len(training)) if (training[row] == nearest).all())
        found.append((bool(distance[order[0]] <= alpha * distance[order[:n]].mean()), row))
    return found


def feature_set(pictures: SmallPictures, labels: NDArray[np.int64] | None = None) -> FeatureSet:
    count = len(pictures.pixels_ND)
    return FeatureSet(np.zeros((count, 1), np.float32), label_N=labels, inputs={NAME: pictures})


def test_it_is_the_papers_rule_on_different_training_images() -> None:
    training = np.concatenate([pictures(0, 150), np.repeat(pictures(1, 3), 60, axis=0)])
    noise = np.random.default_rng(4).integers(-3, 4, (40, 48))
    copies = (training[[5, 155, 220, 290] * 10].astype(int) + noise).clip(0, 255).astype(np.uint8)
    samples = np.concatenate([pictures(2, 60), copies])
    held_out = pictures(3, 90)
    result = Extraction().compute(
        feature_set(SmallPictures(training, held_out_MD=held_out)),
        feature_set(SmallPictures(samples)),
        MetricOptions(),
    )
    wanted = by_loops(samples, training, 0.5, 50)
    assert result.terms_M is not None
    assert result.terms_M.tolist() == [float(yes) for yes, _ in wanted]
    assert result.terms_M[60:].all(), "copies of repeated images do not hide one another"
    details = result.details
    assert details["different_training_images"] == 153 and details["training_images"] == 330
    repeated = {row for yes, row in wanted if yes}
    assert details["training_images_extracted"] == len(repeated)
    most = details["most_extracted"]
    assert isinstance(most, list)
    assert {entry["training_image"] for entry in most} == repeated
    control = [yes for yes, _ in by_loops(held_out, training, 0.5, 50)]
    assert details["rate_of_no_copies"] == pytest.approx(np.mean(control))
    excess = ExtractionExcess().compute(
        feature_set(SmallPictures(training, held_out_MD=held_out)),
        feature_set(SmallPictures(samples)),
        MetricOptions(),
    )
    assert excess.value == pytest.approx(result.value - np.mean(control))
    error = excess.error() if excess.error is not None else None
    assert error is not None
    p, q = result.value, np.mean(control)
    assert error.value == pytest.approx(np.sqrt(p * (1 - p) / 100 + q * (1 - q) / 90))
    yes, of = int(result.terms_M.sum()), len(samples)
    p = hypergeom.sf(yes - 1, of + 90, yes + sum(control), of)
    assert details["p"] == pytest.approx(p, rel=1e-6)


def test_without_held_out_images_each_training_image_is_judged_by_the_others() -> None:
    training = np.concatenate([pictures(0, 80), pictures(0, 2)])
    training[-1, 0] ^= 1  # a near copy of image 1
    result = Extraction().compute(
        feature_set(SmallPictures(training)), feature_set(SmallPictures(pictures(7, 20))), MetricOptions()
    )
    different = np.unique(training, axis=0)
    distance = cdist(different.astype(float), different.astype(float))
    np.fill_diagonal(distance, np.inf)
    nearest = np.sort(distance, axis=1)[:, :50]
    expected = nearest[:, 0] <= 0.5 * nearest.mean(axis=1)
    assert result.details["rate_of_no_copies"] == pytest.approx(expected.mean())
    assert expected.sum() >= 2, "the near copy and its original"


def test_cliques_are_all_near_identical_in_one_condition_and_found_whole() -> None:
    training, samples = pictures(0, 200), pictures(5, 120)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 120)
    for label, original in ((0, training[7]), (1, pictures(99, 1)[0])):  # memorised; collapsed
        rows = np.flatnonzero(labels == label)[:12]
        samples[rows] = (original.astype(int) + rng.integers(-2, 3, (len(rows), 48))).clip(0, 255)
    found = extracted(samples, training, MetricOptions())
    sets = cliques(samples, labels, found, 10)
    assert [set(rows.tolist()) for rows in sets] == sorted(
        (set(np.flatnonzero(labels == label)[:12].tolist()) for label in (0, 1)), key=min
    )
    for rows in sets:
        assert len(set(labels[rows].tolist())) == 1
        distance = cdist(samples[rows] / 255, samples[rows] / 255)
        reach = np.minimum(found.reach_M[rows][:, None], found.reach_M[rows])
        assert (distance <= reach + 1e-3).all()
    result = Extraction().compute(
        feature_set(SmallPictures(training)), feature_set(SmallPictures(samples), labels), MetricOptions()
    )
    told = {entry["condition"]: entry for entry in result.details["cliques"]}  # type: ignore[attr-defined]
    assert told[0]["in_training"] and told[0]["training_image"] == 7
    assert not told[1]["in_training"]
    assert cliques(samples, labels, found, 13) == []


def test_small_pixels_average_large_images_and_keep_small_ones() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    assert (small(images[:, :16, :32]) == images[:, :16, :32].reshape(2, -1)).all()
    found = small(images).reshape(2, 21, 32, 3)
    assert abs(int(found[0, 0, 0, 0]) - images[0, :4, :3, 0].mean()) <= 0.5  # 64 rows into 21: 0 to 3 first
    square = small(np.ascontiguousarray(images[:, :, :64])).reshape(2, 32, 32, 3)
    expected = images[:, :, :64].reshape(2, 32, 2, 32, 2, 3).astype(float).mean(axis=(2, 4))
    assert np.abs(square - expected).max() <= 0.5


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluationReport]:
    """An evaluation of images, of which a third repeats three training images that are there 30 times."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)

    def drawn(count: int) -> Pixels:
        x = rng.normal(size=(count, 30)) @ np.random.default_rng(3).normal(size=(30, 64)) * 9 + 128
        return x.clip(0, 255).astype(np.uint8).reshape(count, 8, 8)

    training, planted = drawn(200), drawn(3)
    samples = np.concatenate([drawn(40), planted[np.arange(20) % 3]])
    sets = {
        "train": np.concatenate([training, np.repeat(planted, 30, axis=0)]),
        "held": drawn(100),
        "made": samples,
    }
    for name, images in sets.items():
        np.savez(folder / f"{name}.npz", images=images)
    report = evaluate(
        Evaluation.of_images(
            settings(
                samples=60, metrics="extraction", features="thumbnail", held_out=str(folder / "held.npz")
            ),
            images=open_images(str(folder / "made.npz")),
            reference=open_images(str(folder / "train.npz")),
            out=folder / "out",
            cache=folder / "cache",
        )
    )
    return folder, report


def test_an_evaluation_finds_planted_copies_beyond_the_rate_of_held_out_images(
    planted: tuple[Path, EvaluationReport],
) -> None:
    _, report = planted
    details = report.details["extraction"]
    assert report.metrics["extraction"] == pytest.approx(20 / 60, abs=0.05)
    most = details["most_extracted"]
    assert isinstance(most, list)
    found = {entry["training_image"] for entry in most[:3]}
    assert found == {200, 230, 260}, "the first of the thirty copies of each"
    assert details["rate_of_no_copies"] < 0.05 and details["p"] < 1e-4  # type: ignore[operator]
    assert report.intervals["extraction"]["method"] == "Wilson score"


def test_a_gate_on_the_interval_keeps_such_a_model_out(planted: tuple[Path, EvaluationReport]) -> None:
    from sfumato.errors import ConfigError
    from sfumato.runtime.pipeline.conditions import Condition
    from sfumato.runtime.pipeline.kinds.gate import GateClosed, GateStage
    from sfumato.runtime.pipeline.place import PipelinePlace
    from sfumato.runtime.pipeline.stage import Work
    from sfumato.runtime.runs.display import Display

    folder, report = planted
    work = Work(place=PipelinePlace(folder, folder), display=Display())

    def gate(text: str) -> GateStage:
        content = {"report": str(folder / "out"), "model": "m", "name": "n", "require": [text]}
        return GateStage.model_validate({"kind": "gate", **content})

    with pytest.raises(GateClosed, match=r"extraction.high is 0\.\d+, required < 0.01"):
        gate("extraction.high < 0.01").perform(work)
    high = float(str(report.intervals["extraction"]["high"]))
    between = (report.metrics["extraction"] + high) / 2
    with pytest.raises(GateClosed, match="required <"):
        gate(f"extraction.high < {between}").perform(work)
    gate(f"extraction < {between}")._known(report)
    assert Condition.parse(f"extraction < {between}").failure(report.metrics, report.intervals) is None
    with pytest.raises(ConfigError, match=r"gate on 'extraction.middle', which was not measured"):
        gate("extraction.middle < 1").perform(work)
