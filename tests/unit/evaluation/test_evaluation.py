"""An evaluation is one value: it travels to workers, and says where everything of it lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ray import cloudpickle

from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.progress import ProgressCallback, once_told
from sfumato.evaluation.references.reference import PackedReference


def of_images(data: Path, folder: Path, **fields: object) -> Evaluation:
    images = PackedReference(data)
    return Evaluation.of_images(
        EvaluateSettings(samples=64, **fields),  # type: ignore[arg-type]
        images=images,
        reference=images,
        out=folder / "out",
        cache=folder / "cache",
        progress=lambda done, total: None,
    )


def test_it_travels_without_what_stays_on_the_driver(digits_data: Path, tmp_path: Path) -> None:
    evaluation = of_images(digits_data, tmp_path)
    there = cloudpickle.loads(cloudpickle.dumps(evaluation.for_workers()))
    assert there.progress is None and evaluation.progress is not None
    assert there.settings == evaluation.settings and there.reference.digest == evaluation.reference.digest
    assert there.source().digest == evaluation.source().digest


def test_folders_default_to_the_one_of_the_report(digits_data: Path, tmp_path: Path) -> None:
    evaluation = of_images(digits_data, tmp_path)
    assert evaluation.blocks_folder == tmp_path / "out"
    assert replace(evaluation, blocks=tmp_path / "b").blocks_folder == tmp_path / "b"
    assert evaluation.features.folder == tmp_path / "cache"
    elsewhere = of_images(digits_data, tmp_path, cache=str(tmp_path / "shared"))
    assert elsewhere.features.folder == tmp_path / "shared"


def test_listeners_without_parts_hear_of_samples_alone(digits_data: Path, tmp_path: Path) -> None:
    heard: list[object] = []
    evaluation = replace(of_images(digits_data, tmp_path), progress=lambda *done: heard.append(done))
    for part in ("reference", "samples", "fd"):
        evaluation.begin(part)(1, 2)
    assert heard == [(1, 2)]
    heard.clear()
    named = replace(evaluation, phase=heard.append)
    for part in ("reference", "samples"):
        named.begin(part)(1, 2)
    assert heard == ["reference", (1, 2), "samples", (1, 2)]
    replace(named, progress=None).begin("fd")(1, 2)
    assert heard[4:] == ["fd"]


def test_a_part_that_is_found_finished_is_not_begun() -> None:
    heard: list[object] = []

    def begin(part: str) -> ProgressCallback:
        heard.append(part)
        return lambda *done: heard.append(done)

    tell = once_told(begin, "training classifier")
    assert heard == []
    tell(0, 2)
    tell(1, 2)
    assert heard == ["training classifier", (0, 2), (1, 2)]
