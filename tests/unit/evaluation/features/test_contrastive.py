"""The pair of encoders, trained on real pairs: it finds images by captions, or says that it does not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_evaluation import reference_features

from sfumato.core.batch import DataSpec
from sfumato.data.packing.pack import pack
from sfumato.errors import DataError
from sfumato.evaluation.decisions.weakness import of_features
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.contrastive import ContrastiveExtractor, ContrastiveKind, ContrastiveOptions
from sfumato.evaluation.metric_options import MetricOptions
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.references.reference import PackedReference

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 220), "white": (240, 240, 240)}
PLACES = {"top": slice(0, 4), "bottom": slice(4, 8)}
QUICK = ContrastiveOptions(seen=10_000, batch=64, base=8, dim=16, lr=3e-3)
IMAGES = 240


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PackedReference:
    """A half of the image is in the colour that the caption names: of 32 captions."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    (folder / "in").mkdir()
    for number in range(IMAGES):
        (a, b), (x, y) = (rng.choice(list(kinds), 2) for kinds in (COLOURS, PLACES))
        image = np.zeros((8, 8, 3), np.int64)
        image[PLACES[x]], image[PLACES[y]] = COLOURS[a], COLOURS[b] if x != y else COLOURS[a]
        image = np.clip(image + rng.integers(-20, 20, image.shape), 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(folder / "in" / f"{number:03d}.png")
        text = f"{a} at the {x}, {b} at the {y}" if x != y else f"{a} everywhere"
        (folder / "in" / f"{number:03d}.txt").write_text(text)
    pack(str(folder / "in"), folder / "out")
    return PackedReference(folder / "out")


@pytest.fixture(scope="module")
def extractor(pairs: PackedReference, tmp_path_factory: pytest.TempPathFactory) -> ContrastiveExtractor:
    return ContrastiveKind().build(pairs, QUICK, tmp_path_factory.mktemp("cache"))


def sets(pairs: PackedReference, extractor: ContrastiveExtractor, folder: Path) -> FeatureSet:
    features = reference_features(pairs, extractor, folder)
    text_ND = extractor.extract_text(pairs.captions(0, pairs.size))
    return FeatureSet(features.embedding_ND, text_ND=text_ND)


def measured(name: str, features: FeatureSet) -> Any:
    return all_metrics()[name].compute(features, features, MetricOptions())


def test_captions_find_their_images_and_those_of_others_do_not(
    pairs: PackedReference, extractor: ContrastiveExtractor, tmp_path: Path
) -> None:
    assert extractor.facts["held_out_retrieval"] > 0.7  # type: ignore[operator]
    assert of_features("contrastive", extractor.facts) == ()
    features = sets(pairs, extractor, tmp_path)
    real, five = measured("retrieval", features), measured("retrieval_5", features)
    assert real.value > 0.6 and five.value >= real.value
    assert real.details["of_real_images"] == real.value
    assert features.text_ND is not None
    others = FeatureSet(features.embedding_ND, text_ND=np.roll(features.text_ND, 1, axis=0))
    assert measured("retrieval", others).value < 0.2
    collapsed = FeatureSet(np.tile(features.embedding_ND[:1], (IMAGES, 1)), text_ND=features.text_ND)
    assert measured("retrieval", collapsed).value < 0.1


def test_an_untrained_pair_marks_its_figures_as_weak(pairs: PackedReference, tmp_path: Path) -> None:
    untrained = ContrastiveKind().build(pairs, QUICK.model_copy(update={"seen": 64}), tmp_path)
    (mark,) = of_features("contrastive", untrained.facts)
    assert "of held-out images by their captions, below 0.5" in mark


def test_training_is_deterministic_and_kept(
    pairs: PackedReference, extractor: ContrastiveExtractor, tmp_path: Path
) -> None:
    quick = QUICK.model_copy(update={"seen": 500})
    first = ContrastiveKind().build(pairs, quick, tmp_path / "a")
    (file,) = (tmp_path / "a").iterdir()
    written = file.stat().st_mtime_ns
    again = ContrastiveKind().build(pairs, quick, tmp_path / "a")
    elsewhere = ContrastiveKind().build(pairs, quick, tmp_path / "b")
    assert file.stat().st_mtime_ns == written, "the cache was not used"
    assert first.digest == again.digest == elsewhere.digest != extractor.digest
    copy = pickle.loads(pickle.dumps(first))  # noqa: S301
    texts = ["red everywhere", "a dog"]
    np.testing.assert_array_equal(copy.extract_text(texts), first.extract_text(texts))


def test_what_it_cannot_learn_from_is_said(digits_data: Path, tmp_path: Path) -> None:
    (problem,) = ContrastiveKind().problems(DataSpec(3, 8, 8, ()))
    assert "need images with captions, and this data has none" in problem
    assert "of 8x8 or more, this data is 4x4" in ContrastiveKind().problems(DataSpec(1, 4, 4, ()))[1]
    with pytest.raises(DataError, match="need captions, but the reference has none"):
        ContrastiveKind().build(PackedReference(digits_data), QUICK, tmp_path)
