"""Images that other programs made: folders, archives and data sets are measured, or refused in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from tiny_evaluation import CLASSIFIER, settings, untrained

from sfumato.core.progress import Progress
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.pack import pack
from sfumato.errors import ConfigError, DataError, SfumatoError
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.report import read_report
from sfumato.evaluation.stage import evaluate
from sfumato.evaluation.subjects.images import Resized, open_images
from sfumato.families.diffusion import Config as Diffusion
from sfumato.families.vae import Config as Vae
from sfumato.runtime.commands.evaluate import Request, measure
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.targets import target_of
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.sampling.output import write_samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every third digit as a PNG in the folder of its class."""
    place = tmp_path_factory.mktemp("pictures")
    digits = load_digits()
    for row in range(0, 1797, 3):
        image = Image.fromarray(np.round(digits.images[row] * 255 / 16).astype(np.uint8))
        (place / str(digits.target[row])).mkdir(exist_ok=True)
        image.save(place / str(digits.target[row]) / f"{row:05d}.png")
    return place


def test_a_folder_an_archive_and_shards_of_the_same_images_have_the_same_figures(
    digits_data: Path, folder: Path, cache: Path, tmp_path: Path
) -> None:
    pack(str(folder), tmp_path / "shards")
    files = sorted(folder.rglob("*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in files])
    labels = np.array([int(path.parent.name) for path in files])
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    reports = [
        evaluate(
            Evaluation.of_images(
                settings(samples=599),
                images=open_images(str(place)),
                reference=open_images(str(digits_data)),
                out=tmp_path / f"out-{number}",
                cache=cache,
            )
        )
        for number, place in enumerate((folder, tmp_path / "shards", tmp_path / "images.npz"))
    ]
    assert reports[0].kind == "images"
    assert reports[0].samples == 599
    assert reports[0].metrics["precision"] == 1.0, "every one is a reference image"
    held_out = reports[0].features["classifier"]["held_out_accuracy"]
    # Most of them are images that the classifier was trained on; classes in another order would give 0.1.
    assert held_out - 0.08 <= reports[0].metrics["class_accuracy"], "the folders' classes"
    assert reports[0].metrics["class_accuracy"] > 0.7
    for other in reports[1:]:
        # Packing orders images by class as the folder does; features are those of the same bytes.
        assert other.metrics == pytest.approx(dict(reports[0].metrics), rel=1e-6)
    assert read_report(tmp_path / "out-0").metrics == reports[0].metrics
    for name, found in reports[0].intervals.items():
        assert float(str(found["low"])) <= reports[0].metrics[name] <= float(str(found["high"]))
    assert {"fd_classifier", "precision", "recall", "class_accuracy"} <= set(reports[0].intervals)


def test_what_sfumato_sampled_is_measured_with_its_classes_and_without_its_grid(
    digits_data: Path, cache: Path, tmp_path: Path
) -> None:
    model = untrained(tmp_path / "model", Diffusion.tiny(), Manifest.load(digits_data).spec)
    write_samples(tmp_path / "drawn", Generator.load(model), 20, seed=3, options={"steps": 2})
    images = open_images(str(tmp_path / "drawn"))
    assert (images.size, images.spec.shape, images.spec.num_classes) == (20, (1, 8, 8), 10)
    pixels, labels = images.read(0, 20)
    assert labels is not None and labels.tolist() == [i % 10 for i in range(20)]
    assert np.array_equal(pixels, Generator.load(model).sample(20, seed=3, options={"steps": 2}))


def test_an_autoencoder_is_measured_by_what_it_reconstructs(
    digits_data: Path, cache: Path, tmp_path: Path
) -> None:
    spec = Manifest.load(digits_data).spec
    config = next(c for c in Vae.variants().values() if not c.samples(spec))
    model = untrained(tmp_path / "model", config, spec)
    report = evaluate(
        Evaluation.of_model(
            settings(samples=130),
            model_folder=model,
            reference=PackedReference(digits_data),
            out=tmp_path / "o",
            cache=cache,
        )
    )
    assert report.kind == "reconstructions"
    assert "rfd_classifier" in report.metrics and "precision" not in report.metrics
    stored = json.loads((tmp_path / "o" / "report.json").read_text())
    assert stored["kind"] == "reconstructions" and stored["samples"] == 130
    said = io.StringIO()
    request = Request(
        {"actors": 0, "feature_options": CLASSIFIER, "samples": 130},
        against=str(digits_data),
        out=tmp_path / "o",
    )
    target = target_of(str(model), root=tmp_path)
    again = measure(target, request, [], root=tmp_path, display=Display(Console(file=said, width=500)))
    assert again["kind"] == "reconstructions" and again["metrics"] == dict(report.metrics)
    assert "draws no images of its own: its reconstructions count" in said.getvalue()
    with pytest.raises(ConfigError, match="presicion"):
        settings(metrics="presicion").select(spec, conditional=True)


def test_a_model_that_gives_no_numbers_is_refused_and_not_rounded_to_black(
    digits_data: Path, cache: Path, tmp_path: Path
) -> None:
    spec = Manifest.load(digits_data).spec
    model = untrained(tmp_path / "model", Diffusion.tiny(), spec)
    generator = Generator.load(model)
    broken = {
        name: {key: value * float("nan") for key, value in net.state_dict().items()}
        for name, net in generator.nets.items()
    }
    save_model_folder(model, generator.config, spec, broken, name="tiny", progress=Progress.at(0))
    with pytest.raises(SfumatoError, match="block 0: the model gave NaN or infinite pixels"):
        evaluate(
            Evaluation.of_model(
                settings(samples=64),
                model_folder=model,
                reference=PackedReference(digits_data),
                out=tmp_path,
                cache=cache,
            )
        )


def test_statistics_in_the_usual_file_stand_in_for_the_images_of_a_reference(
    folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    few, some = small(tmp_path / "few", num=6), tmp_path / "some"
    some.mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.png"))[::50]):
        Image.open(path).save(some / f"{number}.png")
    features = {"changes": {"features": ["efficientnet_lite0"]}}
    made = run(some, None, tmp_path, statistics=tmp_path / "real.npz", **features)
    assert made["statistics"] == [str(tmp_path / "real.npz")]
    with np.load(tmp_path / "real.npz", allow_pickle=False) as stored:
        assert stored["mu"].shape == (1280,) and stored["sigma"].shape == (1280, 1280)
        np.savez(tmp_path / "theirs.npz", mu=stored["mu"], sigma=stored["sigma"])  # as others write it
    by_images = run(few, some, tmp_path, changes={"features": ["efficientnet_lite0"], "metrics": ["fd"]})
    by_moments = run(few, tmp_path / "theirs.npz", tmp_path, **features)
    assert list(by_moments["metrics"]) == ["fd_efficientnet_lite0"]
    assert by_moments["metrics"] == pytest.approx(by_images["metrics"], rel=1e-9)
    with pytest.raises(ConfigError, match="does not record which features it is of: pass --features"):
        run(few, tmp_path / "theirs.npz", tmp_path)
    wanted = {"features": ["efficientnet_lite0"], "metrics": ["fd", "recall"]}
    with pytest.raises(ConfigError, match="recall needs the reference's images"):
        run(few, tmp_path / "theirs.npz", tmp_path, changes=wanted)
    np.savez(tmp_path / "torn.npz", mu=np.zeros(4), sigma=np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"mu has shape \(4,\) and sigma \(3, 3\)"):
        run(few, tmp_path / "torn.npz", tmp_path, **features)
    np.savez(tmp_path / "small.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(DataError, match="has 4 dimensions and features efficientnet_lite0 1280"):
        run(few, tmp_path / "small.npz", tmp_path, **features)


def test_every_metric_that_labelled_images_allow_is_had_by_name_with_an_interval_where_there_is_one(
    digits_data: Path, cache: Path, tmp_path: Path
) -> None:
    names = [
        name
        for name, metric in all_metrics().items()
        if not any(wanted.of_source for wanted in metric.inputs)
        and not metric.only_features
        and name != "lpips_diversity"  # needs weights and larger images
    ]
    assert {"fd_infinity", "intra_fd", "kid", "realism", "authenticity", "classification_score"} < set(names)
    report = evaluate(
        Evaluation.of_images(
            settings(
                samples=1_000, metrics=tuple(names), metric_options={"cas_seen": 2_000, "kid_subsets": 20}
            ),
            images=open_images(str(digits_data)),
            reference=open_images(str(digits_data)),
            out=tmp_path / "out",
            cache=cache,
        )
    )
    assert {metric for metric, _ in report.computed_on.values()} == set(names)
    for figure, value in report.metrics.items():
        if figure == "classification_score":
            assert "compare several seeds" in report.details[figure]["no_interval"]
            assert figure not in report.intervals
            continue
        found = report.intervals[figure]
        assert float(str(found["low"])) <= value <= float(str(found["high"])), figure
        assert found["method"], figure
        assert figure in report.details
        assert report.tags()[f"sfumato.eval.{figure}"].startswith("classifier, ")


def test_copies_are_told_from_new_images_by_held_out_ones_and_shown(
    digits_data: Path, cache: Path, tmp_path: Path
) -> None:
    pixels, labels = open_images(str(digits_data)).read(0, 1797)
    assert labels is not None
    for name, rows in (("train", slice(0, 1200)), ("val", slice(1200, 1500)), ("new", slice(1500, 1780))):
        np.savez(tmp_path / f"{name}.npz", images=pixels[rows, :, :, 0], labels=labels[rows])
    # 250 new images, and after them 30 copies: far behind those that the grid shows.
    mixed = np.concatenate([pixels[1500:1750, :, :, 0], pixels[100:130, :, :, 0]])
    np.savez(
        tmp_path / "mixed.npz", images=mixed, labels=np.concatenate([labels[1500:1750], labels[100:130]])
    )
    held_out = str(tmp_path / "val.npz")
    chosen = settings(metrics="memorisation", held_out=held_out, preview=8)
    found = {
        name: evaluate(
            Evaluation.of_images(
                chosen.model_copy(update={"samples": 280}),
                images=open_images(str(tmp_path / f"{name}.npz")),
                reference=open_images(str(tmp_path / "train.npz")),
                out=tmp_path / name,
                cache=cache,
            )
        )
        for name in ("new", "mixed")
    }
    assert found["new"].metrics["memorisation"] < 0.05
    assert found["mixed"].metrics["memorisation"] > 0.1
    details = found["mixed"].details["memorisation"]
    assert details["compared_with"] == "held-out images"
    closest = details["closest_pairs"]
    assert isinstance(closest, list)
    assert all(pair["sample"] - 250 == pair["training_image"] - 100 for pair in closest), "the copies"
    with Image.open(tmp_path / "mixed" / "neighbours.png") as shown:
        above, below = np.split(np.asarray(shown.convert("L"))[2:], 2)
        assert np.array_equal(above[:48, 2:50], below[:48, 2:50]), "the first pair is a picture and itself"


def test_held_out_images_that_do_not_help_are_refused(digits_data: Path, cache: Path, tmp_path: Path) -> None:
    def run(held_out: Path, **fields: Any) -> None:
        real = open_images(str(digits_data))
        chosen = settings(samples=200, **{"metrics": "memorisation", "held_out": str(held_out)} | fields)
        evaluate(Evaluation.of_images(chosen, images=real, reference=real, out=tmp_path / "out", cache=cache))

    with pytest.raises(ConfigError, match="is the reference itself: name images that were not trained on"):
        run(digits_data)
    with pytest.raises(DataError, match="memorisation needs 100 held-out images or more, got 4"):
        run(small(tmp_path / "few"))
    with pytest.raises(DataError, match="the held-out images are 9x9 grey images but the reference"):
        run(small(tmp_path / "large", (9, 9)))
    with pytest.raises(ConfigError, match="held_out is read by metrics on memorisation"):
        run(digits_data, metrics="fd")
    assert not (tmp_path / "out").exists()


# Bad input ------------------------------------------------------------------------------------------------


def small(folder: Path, size: tuple[int, int] = (8, 8), mode: str = "L", num: int = 4) -> Path:
    folder.mkdir()
    for number in range(num):
        Image.new(mode, size).save(folder / f"{number}.png")
    return folder


def run(place: Path, against: Path | None, tmp_path: Path, **flags: Any) -> dict[str, Any]:
    request = Request(
        {"actors": 0, "feature_options": CLASSIFIER, **flags.pop("changes", {})},
        against=None if against is None else str(against),
        out=tmp_path / "out",
        **flags,
    )
    return measure(target_of(str(place), root=tmp_path), request, [], root=tmp_path, display=Display())


def test_each_mistake_gets_its_line(digits_data: Path, tmp_path: Path) -> None:
    good = small(tmp_path / "good")
    cases: list[tuple[Path, Path | None, dict[str, Any], str]] = [
        (good, None, {}, r"against what\? pass --against"),
        (small(tmp_path / "big", (16, 16)), digits_data, {}, "16x16 grey .* pass --resize bicubic"),
        (small(tmp_path / "rgb", mode="RGB"), digits_data, {}, "3-channel .* pack them with channels=1"),
        (good, digits_data, {"changes": {"samples": 9}}, "--samples 9: there are 4 images"),
        (
            good,
            digits_data,
            {"changes": {"k": 4, "metrics": "recall"}},
            "is too few for recall with evaluate.k=4: 5",
        ),
        (good, digits_data, {"changes": {"metrics": "class_accuracy"}}, "these images have none"),
        (tmp_path / "nowhere", digits_data, {}, "no run 'nowhere'|no run '/"),
    ]
    (good / "notes.docx").write_bytes(b"PK")
    stray = small(tmp_path / "stray")
    (stray / "setup.exe").write_bytes(b"MZ")
    (good / "notes.docx").unlink()
    torn = small(tmp_path / "torn")
    (torn / "1.png").write_bytes(b"no picture")
    np.savez(tmp_path / "floats.npz", images=np.full((4, 8, 8), np.nan, np.float32))
    cases += [
        (stray, digits_data, {}, r"setup\.exe is not an image"),
        (torn, digits_data, {}, r"1\.png: not an image"),
        (tmp_path / "floats.npz", digits_data, {}, "images is float32; wanted uint8"),
    ]
    for place, against, flags, line in cases:
        with pytest.raises(SfumatoError, match=line) as error:
            run(place, against, tmp_path, **flags)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists(), "before anything is made"


def test_a_resize_that_was_asked_for_is_pillows_and_part_of_the_sets_identity(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    place = tmp_path / "large"
    place.mkdir()
    pixels = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(place / f"{number}.png")
    images = open_images(str(place))
    resized = Resized(images, 8, 8, "bicubic")
    found, _ = resized.read(0, 3)
    expected = np.asarray(Image.fromarray(pixels[1]).resize((8, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(found[1], expected)
    assert len({images.digest, resized.digest, Resized(images, 8, 8, "lanczos").digest}) == 3


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    place = small(tmp_path / "a")
    before = open_images(str(place)).digest
    assert open_images(str(place)).digest == before
    Image.new("L", (8, 8), 7).save(place / "2.png")
    assert open_images(str(place)).digest != before
    with pytest.raises(DataError, match="no such file or folder"):
        open_images(str(tmp_path / "b"))
