"""The life of a model of every example: trained, interrupted, resumed, sampled, exported, evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import train_rank
import yaml
from example_cases import EXAMPLES, Prepared
from PIL import Image

import sfumato
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.stage import evaluate
from sfumato.sampling.generator import Generator

Alone = Callable[[str], Path]
NUM = 5
each = pytest.mark.parametrize("name", EXAMPLES)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def conditions(model: Generator, data: Path) -> dict[str, Any]:
    """Those of the first rows of the set."""
    source = rows_of_data(str(data), model.conditions, missing=True)
    return {name: rows.read(range(NUM)) for name, rows in source.items()}


@each
def test_an_interrupted_run_makes_the_same_model_to_the_last_bit(
    name: str, prepared: Prepared, alone: Alone, tmp_path: Path
) -> None:
    more = {"checkpoints": str(tmp_path / "checkpoints"), "out": str(tmp_path / "out.safetensors")}
    train_rank.train(prepared.case(name, stop_at=EXAMPLES[name].stop, **more))
    train_rank.train(prepared.case(name, model_folder=str(tmp_path / "model"), **more))
    assert files(tmp_path / "model") == files(alone(name) / "model")


@each
def test_a_sample_depends_on_its_number_alone(name: str, prepared: Prepared, alone: Alone) -> None:
    model = sfumato.load(alone(name) / "model", trust=True)
    given = conditions(model, prepared.sets[EXAMPLES[name].data])
    images = model.sample(NUM, seed=1, conditions=given)
    assert images.shape == (NUM, *model.data.shape[1:], model.data.channels)
    assert images.std() > 0 and len({image.tobytes() for image in images}) == NUM
    again = sfumato.load(alone(name) / "model", trust=True).sample(NUM, seed=1, conditions=given)
    assert np.array_equal(again, images)
    two = {key: rows[:2] for key, rows in given.items()}
    assert np.array_equal(model.sample(2, seed=1, conditions=two), images[:2])


@each
def test_commands_sample_and_export_it(
    name: str,
    prepared: Prepared,
    alone: Alone,
    tmp_path: Path,
    sfumato_here: Callable[..., tuple[int, str, str]],
) -> None:
    run, data = alone(name), prepared.sets[EXAMPLES[name].data]
    status, _, err = sfumato_here("export", str(run), str(tmp_path / "exported"))
    assert status == 0, err
    model = sfumato.load(tmp_path / "exported", trust=True)
    given = conditions(model, data)
    source = ("--conditions-from", str(data)) if given else ()
    out = tmp_path / "images"
    drawing = ("sample", str(run), "--num", f"{NUM}", "--seed", "1", "--out", str(out))
    status, _, err = sfumato_here(*drawing, *source)
    assert status == 0, err
    drawn = np.stack([np.asarray(Image.open(out / f"{i:06d}.png")) for i in range(NUM)])
    assert np.array_equal(drawn.reshape(NUM, 8, 8, -1), model.sample(NUM, seed=1, conditions=given))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@each
def test_evaluation_measures_it(
    name: str, prepared: Prepared, alone: Alone, cache: Path, tmp_path: Path
) -> None:
    settings = EvaluateSettings(
        samples=16,
        actors=0,
        metrics="fd",
        features="classifier",
        feature_options={"classifier": {"seen": 64, "base": 8, "dim": 4}},
    )
    reference = PackedReference(prepared.sets[EXAMPLES[name].data])
    report = evaluate(
        Evaluation.of_model(
            settings,
            model_folder=alone(name) / "model",
            reference=reference,
            out=tmp_path,
            cache=cache,
            trust=True,
        )
    )
    assert report.samples == 16 and report.metrics["fd_classifier"] > 0


def test_commands_take_the_base_of_an_adapter_from_another_place(
    prepared: Prepared, tmp_path: Path, sfumato_here: Callable[..., tuple[int, str, str]]
) -> None:
    """A run and its checkpoint are measured and sampled with a base that is no longer where it was."""
    run, data = tmp_path / "run", str(prepared.sets["digits"])
    folders = {"checkpoints": str(run / "checkpoints"), "model_folder": str(run / "model")}
    case = prepared.case("adapter", out=str(tmp_path / "out.safetensors"), **folders)
    train_rank.train(case)
    (run / "run.json").write_text("{}")
    model = {"family": case["family"], **case["model"]}
    recipe = {"name": "x", "data": {"path": data}, "model": model, "train": case["train"]}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    *_, checkpoint = sorted((run / "checkpoints").glob("images-*"))
    base = Path(prepared.pretrained["adapter"]["base"]["folder"])
    features = [f"evaluate.feature_options.classifier.{o}" for o in ("seen=64", "base=8", "dim=4")]
    measuring = ["--against", data, "--samples", "16", "--actors", "0", "--metrics", "fd"]
    moved = base.rename(tmp_path / "moved")
    try:
        for number, place in enumerate((run, checkpoint)):
            how = ["evaluate", str(place), *features, *measuring, "--out", str(tmp_path / f"{number}")]
            status, _, err = sfumato_here(*how)
            assert status == 1 and f"{base} is not there" in err, err
            status, _, err = sfumato_here(*how, "--base", str(moved))
            assert status == 0, err
            out = str(tmp_path / f"images-{number}")
            status, _, err = sfumato_here(
                "sample", str(place), "--num", "2", "--out", out, "--base", str(moved)
            )
            assert status == 0, err
        assert files(tmp_path / "images-0")["000001.png"] == files(tmp_path / "images-1")["000001.png"]
        drawing = ["sample", str(run / "model"), "--num", "2", "--base", str(moved)]
        status, _, err = sfumato_here(*drawing, "--out", str(tmp_path / "images-2"))
        assert status == 2 and "adapter:AdapterConfig" in err and "with --trust" in err
        status, _, err = sfumato_here(*drawing, "--out", str(tmp_path / "images-2"), "--trust")
        assert status == 0, err
        assert files(tmp_path / "images-0")["000001.png"] == files(tmp_path / "images-2")["000001.png"]
        status, _, err = sfumato_here("evaluate", data, "--against", data, "--base", str(moved))
        assert status == 2 and "--base is for models, but this measures images" in err
    finally:
        moved.rename(base)
