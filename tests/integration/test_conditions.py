"""Text and image conditions from training to evaluation, by families outside the package."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sfumato import cli
from sfumato import recipe as recipes
from sfumato.core.progress import Progress
from sfumato.data.columns import spec_of
from sfumato.data.format.faults import FaultLog
from sfumato.data.format.manifest import Manifest
from sfumato.data.format.samples import Fields
from sfumato.data.packing.index_existing import IndexOptions, make_index
from sfumato.data.reading import local_reader
from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.stage import evaluate
from sfumato.evaluation.subjects.images import open_images
from sfumato.evaluation.subjects.model_sources import load_model
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training.previews import Previews, preview, preview_source
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.training.config import PreviewConditions
from sfumato.training.loop import Trainer, install

ROWS = 32
FAMILIES = {"Words": "captions:CaptionsConfig", "Paint": "edges:EdgesConfig"}
"""Of tests/examples."""
WORDS = ("dark", "bright", "middle")
LEVELS = {"dark": 30, "bright": 220, "middle": 128}


def png(pixels_HW: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels_HW).save(out, "PNG")
    return out.getvalue()


def control(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a class, the brightness that their caption names, and a control each."""
    folder = tmp_path_factory.mktemp("conditions") / "data"
    folder.mkdir()
    with tarfile.open(folder / "s-0.tar", "w") as tar:
        for row in range(ROWS):
            word = WORDS[row % 3]
            held = {
                "png": png(np.full((8, 8), LEVELS[word] - row % 5, np.uint8)),
                "control.png": png(control(row)),
                "cls": str(row % 2).encode(),
                "txt": word.encode(),
            }
            for extension, content in held.items():
                info = tarfile.TarInfo(f"{row:03d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    fields = Fields.model_validate({"columns": {"control": {"kind": "image", "member": "control.png"}}})
    make_index(folder, IndexOptions(fields=fields), FaultLog("fail", 0), max_pixels=1 << 20)
    return folder


@dataclass(frozen=True)
class Trained:
    recipe: Recipe
    run: Path
    source: Any
    trainer: Trainer
    strategy: Single

    @property
    def model(self) -> Path:
        return self.run / "model"


def recipe_of(content: dict[str, Any]) -> Recipe:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return recipes.load(path)


def trained(name: str, folder: Path, data: Path, images: int = 256, **train: Any) -> Trained:
    """A run of that family, trained in this process."""
    recipe = recipe_of(
        {
            "name": name.lower(),
            "data": {"path": str(data), "streams": 2, "shuffle_window": 8, "columns": ["text", "control"]},
            "model": {"family": FAMILIES[name]},
            "train": {"images": images, "batch": 16, "log_every": 16, "preview_samples": 6, **train},
        }
    )
    manifest = Manifest.load(data)
    spec = spec_of(recipe.data, manifest)
    recipe.check(spec, manifest.samples)
    family, strategy = recipe.model.build(spec), Single(Placement())
    install(family, strategy, recipe.seed)
    trainer = Trainer(family, strategy, recipe.train, seed=recipe.seed, streams=2)
    trainer.run(local_reader.read(recipe.data, manifest, seed=recipe.seed, batch=16))
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    weights = strategy.weights(family.samplers)
    save_model_folder(
        folder / "model", recipe.model, spec, weights, name=recipe.name, progress=trainer.progress
    )
    return Trained(recipe, folder, preview_source(recipe, spec), trainer, strategy)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Trained:
    return trained("Words", tmp_path_factory.mktemp("words") / "run", data, images=1_600)


@pytest.fixture(scope="module")
def paint(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Trained:
    return trained("Paint", tmp_path_factory.mktemp("paint") / "run", data)


def load(run: Trained) -> Generator:
    return Generator.load(run.model, trust=True)


def sample(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sfumato", "sample", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def pixels(folder: Path, index: int) -> np.ndarray:
    return np.asarray(Image.open(folder / f"{index:06d}.png"))


def test_images_follow_their_prompt_and_leave_the_negative_one(words: Trained) -> None:
    model = load(words)
    drawn = model.sample(6, seed=1, prompts=WORDS)
    means = drawn.mean(axis=(1, 2, 3))
    assert means[0] < means[2] < means[1] and means[3] < means[5] < means[4], "in turn"
    options = {"guidance": 1.5}
    away = model.sample(3, seed=1, prompts="middle", negative=["bright", "dark", ""], options=options)
    brightness = away.mean(axis=(1, 2, 3))
    assert brightness[0] < brightness[1], "away from bright is darker than away from dark"


def test_a_sample_depends_on_seed_index_and_its_conditions_alone(words: Trained) -> None:
    model = load(words)
    prompts = [f"{word} {i}" for i in range(30) for word in WORDS]
    whole = model.sample(90, seed=2, prompts=prompts)
    assert np.array_equal(model.sample(90, seed=2, prompts=prompts, batch_size=64), whole)
    assert np.array_equal(model.sample(5, seed=2, prompts=prompts), whole[:5]), "fewer"
    others = [text if i == 70 else "bright" for i, text in enumerate(prompts)]
    assert np.array_equal(model.sample(90, seed=2, prompts=others)[70], whole[70]), "whatever the others are"
    given = model.conditions_of(model.takes.source(prompts=prompts), range(64, 128))
    second = model.sample_block(64, seed=2, conditions=given, options=model.options())
    first = model.sample_block(64, seed=2, conditions=given, options=model.options())
    assert torch.equal(first, second)
    found = ((first[:26].permute(0, 2, 3, 1).numpy() / 2 + 0.5).clip(0, 1) * 255).round()
    assert np.array_equal(found.astype(np.uint8), whole[64:]), "a block on its own"


def test_previews_are_drawn_for_the_first_captions_or_the_recipes_prompts(
    words: Trained, paint: Trained, data: Path, tmp_path: Path
) -> None:
    spec = spec_of(words.recipe.data, Manifest.load(data))
    assert words.source["caption"].read([0, 1, 2, 3]) == ["dark", "bright", "middle", "dark"]
    picture = paint.source["control"].read([3])[0, 0]
    assert torch.equal(picture, torch.from_numpy(control(3)).float() / 127.5 - 1)
    asked = PreviewConditions(prompts=("bright", "dark"), negative=("middle",))
    train = words.recipe.train.model_copy(update={"preview_conditions": asked})
    recipe = words.recipe.model_copy(update={"train": train})
    assert recipe.digest() == words.recipe.digest(), "what previews show is no part of a run's identity"
    source = preview_source(recipe, spec)
    assert [source["caption"].read([0])[0], source["negative_caption"].read([0])[0]] == ["bright", "middle"]
    for run in (words, paint):
        family = run.recipe.model.build(spec)
        Previews(run.recipe, family, run.strategy, spec, RunFolder(run.run), None)(run.trainer.progress)
        model = load(run)
        image = preview(
            family,
            run.strategy,
            lambda rows, model=model, run=run: model.conditions_of(run.source, rows),
            run.recipe.model.sampling,
            run.trainer.progress,
            num=6,
            seed=0,
            columns=6,
        )
        assert image is not None and image.size[0] > image.size[1], "six beside one another"


def test_a_recipe_is_checked_before_it_runs(data: Path, tmp_path: Path) -> None:
    asked = {"preview_conditions": {"labels": ["7"]}}
    with pytest.raises(ConfigError, match=r"train.preview_conditions: --label: this .* model takes none"):
        trained("Words", tmp_path / "a", data, **asked)
    recipe = {
        "name": "words",
        "data": {"path": str(data), "streams": 2, "shuffle_window": 8},
        "model": {"family": FAMILIES["Words"]},
        "train": {"images": 16, "batch": 16},
    }
    built = recipe_of(recipe)
    with pytest.raises(ConfigError, match="needs the column 'text' for its condition 'caption'"):
        built.check(spec_of(built.data, Manifest.load(data)), ROWS)


def test_the_command_line_takes_prompts(
    words: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = str(words.run), tmp_path / "out"
    arguments = ["--prompt", "dark", "--prompt", "bright", "--negative", "middle", "--num", "3"]
    assert sample(monkeypatch, run, "--out", str(out), "--seed", "4", *arguments) == 0
    wanted = load(words).sample(3, seed=4, prompts=["dark", "bright"], negative="middle")
    assert all(np.array_equal(pixels(out, i), wanted[i, :, :, 0]) for i in range(3))
    assert [line["conditions"] for line in lines(out)][:2] == [
        {"caption": "dark", "negative_caption": "middle"},
        {"caption": "bright", "negative_caption": "middle"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "dark", "negative": "bright"}\n\n{"prompt": "middle"}\n')
    assert sample(monkeypatch, run, "--out", str(tmp_path / "file"), "--prompts", str(file)) == 0
    assert [line["conditions"]["negative_caption"] for line in lines(tmp_path / "file")] == ["bright", ""]
    swept = ["--out", str(tmp_path / "swept"), "--prompts", str(file), "--sweep", "guidance=1,3"]
    assert sample(monkeypatch, run, *swept) == 0
    told = [
        (line["conditions"]["caption"], line["options"]["guidance"]) for line in lines(tmp_path / "swept")
    ]
    assert told == [("dark", 1), ("dark", 3), ("middle", 1), ("middle", 3)]
    assert sample(monkeypatch, run, "--out", str(tmp_path / "bad"), "--sweep", "guidance") == 2


def test_the_command_line_takes_images_and_rows_of_a_data_set(
    paint: Trained, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in (5, 2):
        (tmp_path / f"{row}.png").write_bytes(png(control(row)))
    given = ["--condition", f"control={tmp_path}", "--num", "3", "--seed", "1"]
    assert sample(monkeypatch, str(paint.run), "--out", str(tmp_path / "a"), *given) == 0
    controls = np.stack([control(row) for row in (2, 5, 2)])[..., None]
    wanted = load(paint).sample(3, seed=1, conditions={"control": controls})
    assert all(np.array_equal(pixels(tmp_path / "a", i), wanted[i, :, :, 0]) for i in range(3))
    assert lines(tmp_path / "a")[1]["conditions"] == {"control": str(tmp_path / "5.png")}
    rows = ["--conditions-from", str(data), "--num", "34", "--seed", "1"]
    assert sample(monkeypatch, str(paint.run), "--out", str(tmp_path / "b"), *rows) == 0
    everything = np.stack([control(row % ROWS) for row in range(34)])[..., None]
    wanted = load(paint).sample(34, seed=1, conditions={"control": everything})
    assert all(np.array_equal(pixels(tmp_path / "b", i), wanted[i, :, :, 0]) for i in range(34))
    assert lines(tmp_path / "b")[33]["conditions"] == {"control": {"data": str(data), "row": 1}}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "control: this model needs one for every image (an image of 1x8x8)"),
        (["--prompt", "a"], "--prompt: this edges:EdgesConfig model takes none"),
        (
            ["--condition", "contrl=x.png"],
            "contrl: this model takes no such condition; did you mean 'control'",
        ),
        (["--condition", "control=nowhere.png"], "control: nowhere.png: no such file or folder"),
        (
            ["--condition", "control=large.png"],
            "(channels x height x width) 1x8x8, got 1x9x8",
        ),
        (["--condition", "control=colour.png"], "1x8x8, got 3x8x8"),
        (["--condition", "control=broken.png"], "control: broken.png: not an image that can be read"),
        (["--conditions-from", "nowhere"], "nowhere: no manifest.json there"),
    ],
)
def test_bad_conditions_get_one_line_before_anything_is_drawn(
    paint: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 9)).save("large.png")
    Image.new("RGB", (8, 8)).save("colour.png")
    Path("broken.png").write_bytes(b"\x89PNG and then nothing")
    assert sample(monkeypatch, str(paint.run), "--out", "out", *arguments) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("error:") == 1
    assert not Path("out").exists()


def test_evaluation_draws_for_the_rows_of_the_reference(
    words: Trained, paint: Trained, data: Path, tmp_path: Path
) -> None:
    reference = PackedReference(data)
    captions = [WORDS[row % ROWS % 3] for row in range(64)]
    source = load_model(words.model, {}, device="cpu", trust=True, reference=reference)
    wanted = load(words).sample(64, seed=3, prompts=captions)
    assert np.array_equal(source.draw(0, seed=3, labels_B=None).images, wanted)
    controls = np.stack([control(row % ROWS) for row in range(64)])[..., None]
    source = load_model(paint.model, {}, device="cpu", trust=True, reference=reference)
    wanted = load(paint).sample(64, seed=3, conditions={"control": controls})
    assert np.array_equal(source.draw(0, seed=3, labels_B=None).images, wanted)
    settings = EvaluateSettings(
        samples=16,
        actors=0,
        metrics="fd",
        features="classifier",
        feature_options={"classifier": {"seen": 64, "base": 8, "dim": 4}},
    )
    report = evaluate(
        Evaluation.of_model(
            settings,
            model_folder=words.model,
            reference=reference,
            out=tmp_path,
            cache=tmp_path / "cache",
            trust=True,
        )
    )
    assert report.samples == 16 and report.metrics["fd_classifier"] >= 0
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a.png").write_bytes(png(control(1)))
    with pytest.raises(DataError, match="for captions, but the reference has none: pack captions too"):
        load_model(words.model, {}, device="cpu", trust=True, reference=open_images(str(plain)))
    with pytest.raises(DataError, match="'control', but the reference has no column 'control'"):
        load_model(paint.model, {}, device="cpu", trust=True, reference=open_images(str(plain)))


def test_a_registered_model_takes_its_conditions_as_columns(
    words: Trained, paint: Trained, tmp_path: Path
) -> None:
    pandas, pyfunc = pytest.importorskip("pandas"), pytest.importorskip("mlflow.pyfunc")
    from mlflow.models import Model

    from sfumato.tracking.model import _pack, signature

    assert [(c.name, c.required) for c in signature(load(words)).inputs] == [
        ("seed", True),
        ("caption", True),
        ("negative_caption", False),
    ]
    for run, column, values in (
        (words, "caption", ["dark", "bright", "middle"]),
        (paint, "control", [png(control(row)) for row in range(3)]),
    ):
        generator = load(run)
        packed = tmp_path / column
        as_logged = Model(artifact_path=str(packed), run_id="run", model_id=f"m-{column}")
        _pack(packed, run.model, generator, as_logged, None)
        frame = pandas.DataFrame({"seed": [3, 3, 3], column: values})
        found = pyfunc.load_model(str(packed)).predict(frame)
        given = values if column == "caption" else np.stack([control(row) for row in range(3)])[..., None]
        assert np.array_equal(found, generator.sample(3, seed=3, conditions={column: given}))


def test_a_generator_at_progress_zero_knows_its_conditions(words: Trained) -> None:
    model = load(words)
    assert model.progress == words.trainer.progress != Progress.at(0)
    assert [condition.name for condition in model.conditions] == ["caption"]
    assert len(list(islice(model.batches(3, prompts="dark"), 3))) == 1
