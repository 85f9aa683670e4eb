"""Features dinov2 and clip: the real classes with random weights, against transformers' own calls."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.core.rng import seeded
from sfumato.errors import CapabilityError
from sfumato.evaluation.features.clip import MEAN as CLIP_MEAN
from sfumato.evaluation.features.clip import ClipKind, ClipOptions
from sfumato.evaluation.features.dinov2 import DEVIATION, MEAN, Dinov2Kind, Dinov2Options

transformers = pytest.importorskip("transformers")


class NoReference:
    """The extractors need nothing of it."""


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    with seeded(0, "dinov2"):
        transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 20, 31, 3), dtype=np.uint8)


def pillow(
    batch: np.ndarray, side: int, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> torch.Tensor:
    """The transform by Pillow, channel by channel in float."""
    resized = [
        [
            np.asarray(
                Image.fromarray(image[..., c].astype(np.float32)).resize(
                    (side, side), Image.Resampling.BICUBIC
                )
            )
            for c in range(3)
        ]
        for image in batch
    ]
    x = torch.from_numpy(np.array(resized)).clamp(0, 255) / 255
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


def test_dinov2_gives_the_normalised_class_token(dinov2_folder: Path, tmp_path: Path) -> None:
    extractor = Dinov2Kind().build(NoReference(), Dinov2Options(weights=dinov2_folder), tmp_path)  # type: ignore[arg-type]
    network = transformers.Dinov2Model.from_pretrained(dinov2_folder).eval()
    with torch.no_grad():
        expected = network(pillow(images(), 224, MEAN, DEVIATION)).last_hidden_state[:, 0]
    ours = extractor.extract(images())
    np.testing.assert_allclose(ours.embedding_ND, expected.numpy(), rtol=1e-3, atol=2e-3)
    assert ours.embedding_ND.shape == (3, extractor.dim) == (3, 16)
    copy = pickle.loads(pickle.dumps(extractor))  # noqa: S301  # our own bytes
    np.testing.assert_array_equal(copy.extract(images()).embedding_ND, ours.embedding_ND)
    grey = images()[..., :1]
    np.testing.assert_array_equal(
        extractor.extract(grey).embedding_ND, extractor.extract(grey.repeat(3, axis=-1)).embedding_ND
    )


def test_clip_gives_projected_images_and_captions(clip_folder: Path, tmp_path: Path) -> None:
    extractor = ClipKind().build(NoReference(), ClipOptions(weights=clip_folder), tmp_path)  # type: ignore[arg-type]
    network = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    captions = ["a b c", "b", "c c c c c c c c c c c c c c c"]
    tokens = tokenizer(captions, padding=True, truncation=True, max_length=10, return_tensors="pt")
    x = pillow(images(), 28, CLIP_MEAN, (0.26862954, 0.26130258, 0.27577711))
    with torch.no_grad():
        whole = network(pixel_values=x, **tokens)
    text = extractor.extract_text(captions)
    picture = extractor.extract(images()).embedding_ND
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (picture, text)]
    np.testing.assert_allclose(unit[0], whole.image_embeds.numpy(), atol=1e-3)
    np.testing.assert_allclose(unit[1], whole.text_embeds.numpy(), atol=1e-5)
    assert extractor.dim == 12


def test_folders_that_are_missing_or_of_another_model_are_one_line(
    clip_folder: Path, dinov2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SFUMATO_DINOV2_WEIGHTS", raising=False)
    kind, nothing = Dinov2Kind(), NoReference()
    with pytest.raises(CapabilityError, match=r"none given; set .*weights=FOLDER or SFUMATO_DINOV2_WEIGHTS"):
        kind.build(nothing, Dinov2Options(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(CapabilityError, match=r"has no config\.json and no model\.safetensors"):
        kind.build(nothing, Dinov2Options(weights=tmp_path), tmp_path)  # type: ignore[arg-type]
    monkeypatch.setenv("SFUMATO_DINOV2_WEIGHTS", str(clip_folder))
    with pytest.raises(CapabilityError) as raised:
        kind.build(nothing, Dinov2Options(), tmp_path)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("SFUMATO_CLIP_WEIGHTS", str(dinov2_folder))
    with pytest.raises(CapabilityError):
        ClipKind().build(nothing, ClipOptions(), tmp_path)  # type: ignore[arg-type]
