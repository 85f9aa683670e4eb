"""The stage on a real Ray with a real model: the same numbers for any number of actors, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_evaluation
import torch
from PIL import Image
from tiny_evaluation import untrained

import sfumato
from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.pack import pack
from sfumato.errors import CapabilityError, CheckpointError, ConfigError, DataError, SfumatoError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.features.classifier import ClassifierKind, ClassifierOptions
from sfumato.evaluation.metrics.lpips import Lpips
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.report import EvaluationReport
from sfumato.evaluation.stage import evaluate
from sfumato.evaluation.subjects.source import Drawn
from sfumato.families.gan.config import GanConfig
from sfumato.provenance.door import Door
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder

SAMPLES = 200
settings = partial(tiny_evaluation.settings, samples=SAMPLES)


@pytest.fixture(scope="module")
def model(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GAN, untrained: it makes images of the right kind, and workers that load it start quickly."""
    return untrained(
        tmp_path_factory.mktemp("model") / "model", GanConfig.tiny(), Manifest.load(digits_data).spec
    )


def content(folder: Path) -> dict[str, bytes]:
    """Arrays of all blocks and the preview, without the seconds that the headers hold."""
    from sfumato.evaluation.store import read_arrays

    found = {"preview": (folder / "preview.png").read_bytes()}
    for path in sorted(folder.glob("blocks-*/*.safetensors")):
        stored = read_arrays(path)
        assert stored is not None
        found |= {f"{path.parent.name}/{path.name}/{name}": a.tobytes() for name, a in stored[0].items()}
    return found


@pytest.fixture(scope="module")
def alone(
    model: Path, digits_data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluationReport, dict[str, bytes]]:
    """The evaluation in this process, which all others must equal."""
    out = tmp_path_factory.mktemp("alone")
    report = evaluate(
        Evaluation.of_model(
            settings(), model_folder=model, reference=PackedReference(digits_data), out=out, cache=cache
        )
    )
    return report, content(out)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(("actors", "batch_size"), [(1, None), (2, 130), (4, 1)])
def test_the_numbers_are_the_same_for_any_number_of_actors_and_batch_size(
    alone: tuple[EvaluationReport, dict[str, bytes]],
    model: Path,
    digits_data: Path,
    cache: Path,
    tmp_path: Path,
    actors: int,
    batch_size: int | None,
) -> None:
    seen: list[tuple[int, int]] = []
    report = evaluate(
        Evaluation.of_model(
            settings(actors=actors, cpus_per_actor=0.5, batch_size=batch_size),
            model_folder=model,
            reference=PackedReference(digits_data),
            out=tmp_path,
            cache=cache,
            progress=lambda done, total: seen.append((done, total)),
        )
    )
    assert dict(report.metrics) == dict(alone[0].metrics)
    assert report.details == alone[0].details
    assert content(tmp_path) == alone[1]
    assert seen == [(0, 200), (64, 200), (128, 200), (192, 200), (200, 200)]


def test_the_report(
    alone: tuple[EvaluationReport, dict[str, bytes]],
    model: Path,
    digits_data: Path,
    cache: Path,
    tmp_path: Path,
) -> None:
    report = evaluate(
        Evaluation.of_model(
            settings(), model_folder=model, reference=PackedReference(digits_data), out=tmp_path, cache=cache
        )
    )
    stored = json.loads((tmp_path / "report.json").read_text())
    assert set(stored["metrics"]) == {"fd_classifier", "precision", "recall", "class_accuracy"}
    assert stored["metrics"] == dict(report.metrics)
    assert stored["samples"] == SAMPLES
    assert stored["reference_samples"] == 1797
    assert stored["features"]["classifier"]["held_out_accuracy"] > 0.8
    assert stored["higher_is_better"]["fd_classifier"] is False
    assert 0 < report.seconds_per_image < report.seconds
    assert report.metrics["fd_classifier"] > 1, "an untrained model is far from the digits"
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.size == (8 * (48 + 2) + 2, 8 * (48 + 2) + 2)


def test_a_sample_depends_on_its_index_alone_not_on_how_many_there_are(
    alone: tuple[EvaluationReport, dict[str, bytes]],
    model: Path,
    digits_data: Path,
    cache: Path,
    tmp_path: Path,
) -> None:
    evaluate(
        Evaluation.of_model(
            settings(samples=100),
            model_folder=model,
            reference=PackedReference(digits_data),
            out=tmp_path,
            cache=cache,
        )
    )
    some = content(tmp_path)
    assert len(some) < len(alone[1])
    assert some.items() <= alone[1].items()


def test_another_seed_and_other_sampling_options_give_other_samples(
    alone: tuple[EvaluationReport, dict[str, bytes]],
    model: Path,
    digits_data: Path,
    cache: Path,
    tmp_path: Path,
) -> None:
    for number, fields in enumerate(({"seed": 1}, {"sampling": {"truncation": 0.5}})):
        # One folder for all: blocks of another evaluation must not be taken for this one's.
        report = evaluate(
            Evaluation.of_model(
                settings(**fields),
                model_folder=model,
                reference=PackedReference(digits_data),
                out=tmp_path,
                cache=cache,
            )
        )
        assert report.metrics["fd_classifier"] != alone[0].metrics["fd_classifier"]
        assert len(list(tmp_path.glob("blocks-*"))) == number + 1


def test_a_killed_evaluation_goes_on_where_it_stood(
    alone: tuple[EvaluationReport, dict[str, bytes]],
    model: Path,
    digits_data: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop_after_two_blocks(done: int, total: int) -> None:
        if done >= 128:
            raise KeyboardInterrupt

    whole = Evaluation.of_model(
        settings(), model_folder=model, reference=PackedReference(digits_data), out=tmp_path, cache=cache
    )
    with pytest.raises(KeyboardInterrupt):
        evaluate(replace(whole, progress=stop_after_two_blocks))
    assert not (tmp_path / "report.json").exists()
    (folder,) = tmp_path.glob("blocks-*")
    (folder / "000000.safetensors").write_bytes(b"torn by a full disk")

    made: list[int] = []
    original = Generator.sample_block
    monkeypatch.setattr(
        Generator,
        "sample_block",
        lambda self, first, **rest: made.append(first) or original(self, first, **rest),
    )
    report = evaluate(whole)
    assert made == [0, 128, 192], "block 1 was whole and is not made again"
    assert dict(report.metrics) == dict(alone[0].metrics)
    assert content(tmp_path) == alone[1]
    made.clear()
    evaluate(whole)
    assert made == []


KILLED = """
import sys, time
from pathlib import Path
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.stage import evaluate
settings, model, data, out, cache = sys.argv[1:]

def stored(done, total):
    print(done, flush=True)
    time.sleep(3600 * (done >= 64))  # it waits to be killed

evaluate(Evaluation.of_model(
    EvaluateSettings.model_validate_json(settings),
    model_folder=Path(model), reference=PackedReference(data), out=Path(out), cache=Path(cache),
    progress=stored,
))
"""


def test_a_process_that_was_killed_outright_leaves_blocks_that_the_next_goes_on_from(
    alone: tuple[EvaluationReport, dict[str, bytes]],
    model: Path,
    digits_data: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = settings()
    places = [str(place) for place in (model, digits_data, tmp_path, cache)]
    command = [sys.executable, "-c", KILLED, chosen.model_dump_json(), *places]
    environment = {**os.environ, "PYTHONPATH": str(Path(sfumato.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 64:
                process.kill()  # SIGKILL: nothing is tidied up
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "report.json").exists()
    whole = {int(path.stem) for path in tmp_path.glob("blocks-*/[0-9]*.safetensors")}
    assert 0 in whole and len(whole) < 4, "it was killed in the middle"

    made: list[int] = []
    original = Generator.sample_block
    monkeypatch.setattr(
        Generator,
        "sample_block",
        lambda self, first, **rest: made.append(first // 64) or original(self, first, **rest),
    )
    report = evaluate(
        Evaluation.of_model(
            chosen, model_folder=model, reference=PackedReference(digits_data), out=tmp_path, cache=cache
        )
    )
    assert made == sorted({0, 1, 2, 3} - whole)
    assert dict(report.metrics) == dict(alone[0].metrics)
    assert content(tmp_path) == alone[1]


# Sources of our own: real images played back, and workers that die ----------------------------------------


class Playback:
    """Gives the reference's own images, by class, and can be told to fail."""

    kind = "samples"
    size = None
    block = 100
    conditional = True
    door = Door()

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        """`options`: data (folder), die_once (a file that marks the death), fail (a message)."""
        reference = PackedReference(options["data"])
        blocks = list(reference.blocks())
        self.spec = reference.spec
        self.digest = "playback"
        self._images = np.concatenate([images for images, _ in blocks])
        self._labels = np.concatenate([labels for _, labels in blocks if labels is not None])
        self._options = options

    def draw(self, index: int, *, seed: int, labels_B: np.ndarray | None) -> Drawn:
        assert labels_B is not None
        mark = self._options.get("die_once")
        if mark and index == 1 and not Path(mark).exists():
            Path(mark).touch()
            os._exit(1)
        if self._options.get("die") and index == 1:
            os._exit(1)
        if index == 2 and self._options.get("fail"):
            raise SfumatoError(self._options["fail"])
        if index == 2 and self._options.get("crash"):
            raise RuntimeError(self._options["crash"])
        if self._options.get("wrong_dtype"):
            return Drawn(self._images[: self.block].astype(np.float32))
        rng = np.random.default_rng([seed, index])
        rows = [rng.choice(np.flatnonzero(self._labels == label)) for label in labels_B]
        return Drawn(self._images[rows])


@pytest.fixture
def by_value() -> Any:
    """Ray's workers cannot import this file; its classes travel with the task."""
    import ray.cloudpickle

    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


def play(digits: Path, out: Path, cache: Path, actors: int = 0, **options: Any) -> EvaluationReport:
    chosen = {"sampling": {"data": str(digits)} | options, "actors": actors, "cpus_per_actor": 0.5}
    return evaluate(
        Evaluation(
            settings(**chosen, samples=400),
            load=Playback,
            model_folder=out,
            reference=PackedReference(digits),
            out=out,
            cache=cache,
        )
    )


@pytest.mark.usefixtures("ray_local")
def test_path_lengths_are_made_by_workers_without_a_file_of_weights_and_are_the_same_there(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", images=pixels, labels=np.arange(40) % 2)
    pack(str(tmp_path / "few.npz"), tmp_path / "few")
    with seeded(0, "alexnet"):
        state = {name: value for name, value in Lpips().state_dict().items() if name.startswith("features.")}
    torch.save(state, tmp_path / "alexnet.pth")
    monkeypatch.setenv("SFUMATO_ALEXNET_WEIGHTS", str(tmp_path / "alexnet.pth"))
    config = GanConfig.tiny()
    spec = Manifest.load(tmp_path / "few").spec
    network = config.build(spec).nets["generator"].build().state_dict()  # type: ignore[union-attr]
    save_model_folder(tmp_path / "gan", config, spec, {"ema": network}, name="gan", progress=Progress.at(0))
    found = [
        evaluate(
            Evaluation.of_model(
                EvaluateSettings(
                    samples=70,
                    actors=actors,
                    feature_options={"classifier": {"seen": 256, "base": 8, "dim": 8}},
                    metrics=("perceptual_path_length", "memorisation"),
                    metric_options={"path_pairs": 130, "memorisation_quantile": 0.1},
                    cpus_per_actor=0.5,
                ),
                model_folder=tmp_path / "gan",
                reference=PackedReference(tmp_path / "few"),
                out=tmp_path / f"out-{actors}",
                cache=cache,
            )
        )
        for actors in (0, 1)
    ]
    assert found[0].metrics == found[1].metrics, "Ray started before the weights were named"
    assert found[0].metrics["perceptual_path_length"] > 0
    assert found[0].details["perceptual_path_length"]["pairs"] == 130
    interval = found[0].intervals["perceptual_path_length"]
    assert (
        float(str(interval["low"]))
        < found[0].metrics["perceptual_path_length"]
        < float(str(interval["high"]))
    )
    assert len(list((tmp_path / "out-1").glob("blocks-*/path-*.safetensors"))) == 3


def test_real_images_played_back_are_nearly_perfect(
    alone: tuple[EvaluationReport, dict[str, bytes]], digits_data: Path, cache: Path, tmp_path: Path
) -> None:
    report = play(digits_data, tmp_path, cache)
    assert report.metrics["precision"] == 1.0, "every sample is a reference image"
    assert 0.5 < report.metrics["recall"] < 1.0
    assert report.metrics["fd_classifier"] < alone[0].metrics["fd_classifier"] / 10
    # As accurate as the classifier is on these images, if each sample is of the class that was asked for.
    reference, options = (
        PackedReference(digits_data),
        ClassifierOptions(**tiny_evaluation.CLASSIFIER["classifier"]),
    )
    real = tiny_evaluation.reference_features(
        reference, ClassifierKind().build(reference, options, cache), cache
    )
    assert real.logits_NK is not None
    right = np.mean(real.logits_NK.argmax(axis=1) == real.label_N)
    assert report.metrics["class_accuracy"] == pytest.approx(right, abs=0.05)


@pytest.mark.usefixtures("ray_local", "by_value")
def test_a_worker_that_dies_is_replaced_and_changes_no_number(
    digits_data: Path, cache: Path, tmp_path: Path
) -> None:
    expected = play(digits_data, tmp_path / "a", cache)
    mark = tmp_path / "died"
    report = play(digits_data, tmp_path / "b", cache, actors=2, die_once=str(mark))
    assert mark.exists()
    assert dict(report.metrics) == dict(expected.metrics)
    assert content(tmp_path / "b") == content(tmp_path / "a")


@pytest.mark.usefixtures("ray_local", "by_value")
def test_failures_in_a_worker_reach_the_user_in_one_line(
    digits_data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SfumatoError) as ours:
        play(digits_data, tmp_path / "a", cache, actors=1, fail="the sampler gave up")
    assert str(ours.value) == "the sampler gave up"
    with pytest.raises(SfumatoError) as theirs:
        play(digits_data, tmp_path / "b", cache, actors=1, crash="boom")
    assert str(theirs.value) == "an actor failed: RuntimeError: boom"
    monkeypatch.setattr("sfumato.evaluation.blocks.ray_pool.RESTARTS", 1)
    with pytest.raises(SfumatoError, match="an actor died 2 times") as dead:
        play(digits_data, tmp_path / "c", cache, actors=1, die=True)
    assert "\n" not in str(dead.value)
    assert "Run the same again" in str(dead.value)


@pytest.mark.usefixtures("ray_local")
def test_actors_that_fit_nowhere_are_refused_at_once_and_a_full_cluster_after_the_timeout(
    model: Path, digits_data: Path, cache: Path, tmp_path: Path
) -> None:
    import ray

    def run(chosen: EvaluateSettings) -> None:
        reference = PackedReference(digits_data)
        evaluate(
            Evaluation.of_model(chosen, model_folder=model, reference=reference, out=tmp_path, cache=cache)
        )

    with pytest.raises(CapabilityError, match=r"cpus_per_actor=64 fits no machine .* largest has 4 CPUs"):
        run(settings(actors=1, cpus_per_actor=64))

    @ray.remote(num_cpus=4)
    class Hog:
        def ready(self) -> None:
            pass

    hog = Hog.remote()  # type: ignore[attr-defined]
    try:
        ray.get(hog.ready.remote())
        with pytest.raises(
            CapabilityError, match=r"no evaluation actor started within .*=2 s: each needs 1 CPU"
        ):
            run(settings(actors=2, start_timeout=2))
    finally:
        ray.kill(hog)


# Bad input ------------------------------------------------------------------------------------------------


def test_images_of_another_kind_than_the_reference_are_refused(
    digits_data: Path, cache: Path, tmp_path: Path
) -> None:
    classes = tuple("0123456789")
    other = untrained(tmp_path / "rgb", GanConfig.tiny(), DataSpec(3, 16, 16, classes))
    with pytest.raises(DataError, match="makes 16x16 3-channel images but the reference holds 8x8 grey"):
        evaluate(
            Evaluation.of_model(
                settings(),
                model_folder=other,
                reference=PackedReference(digits_data),
                out=tmp_path / "o",
                cache=cache,
            )
        )
    fewer = untrained(tmp_path / "few", GanConfig.tiny(), DataSpec(1, 8, 8, classes[:4]))
    with pytest.raises(DataError, match="has 4 classes and the reference 10"):
        evaluate(
            Evaluation.of_model(
                settings(),
                model_folder=fewer,
                reference=PackedReference(digits_data),
                out=tmp_path / "o",
                cache=cache,
            )
        )
    assert not (tmp_path / "o").exists()


def test_bad_settings_folders_and_options_are_refused_before_anything_is_made(
    model: Path, digits_data: Path, tmp_path: Path
) -> None:
    def run(chosen: EvaluateSettings, model_folder: Path, data: Path) -> None:
        out, cache = tmp_path / "o", tmp_path / "c"
        reference = PackedReference(data)
        evaluate(
            Evaluation.of_model(chosen, model_folder=model_folder, reference=reference, out=out, cache=cache)
        )

    with pytest.raises(DataError, match=r"no manifest\.json"):
        run(settings(), model_folder=model, data=tmp_path)
    with pytest.raises(CheckpointError):
        run(settings(), model_folder=tmp_path, data=digits_data)
    with pytest.raises(ConfigError, match="did you mean 'truncation'"):
        run(settings(sampling={"trunkation": 0.5}), model_folder=model, data=digits_data)
    with pytest.raises(ConfigError, match="too few for precision"):
        run(settings(samples=5, k=9), model_folder=model, data=digits_data)
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "c").exists()


def test_a_reference_smaller_than_k_is_refused(tmp_path: Path, cache: Path) -> None:
    np.savez(tmp_path / "few.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.array([0, 1, 1]))
    pack(str(tmp_path / "few.npz"), tmp_path / "few")
    few = untrained(tmp_path / "m", GanConfig.tiny(), Manifest.load(tmp_path / "few").spec)
    with pytest.raises(DataError, match="precision needs 4 reference images or more, got 3"):
        evaluate(
            Evaluation.of_model(
                settings(),
                model_folder=few,
                reference=PackedReference(tmp_path / "few"),
                out=tmp_path / "o",
                cache=cache,
            )
        )


def test_a_model_that_gives_no_images_is_found_out(digits_data: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SfumatoError, match=r"block 0: the model gave float32 .*, wanted uint8 \(100, 8, 8, 1\)"
    ):
        play(digits_data, tmp_path, cache, wrong_dtype=True)
