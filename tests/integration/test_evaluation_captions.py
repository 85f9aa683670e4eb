"""CLIPScore through the stage: captions of files, of shards, of the reference; a model that takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.config import Config
from sfumato.core.family import FamilyConfig, Frozen, Nets, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng
from sfumato.data.packing.pack import pack
from sfumato.errors import CapabilityError, ConfigError, DataError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.stage import evaluate
from sfumato.evaluation.subjects.images import open_images
from sfumato.evaluation.subjects.model_sources import GeneratorSource
from sfumato.evaluation.subjects.source import Drawn
from sfumato.sampling.generator import Generator

pytest.importorskip("transformers")
WORDS = ("a", "b", "c", "a b", "b c", "c a", "a b c", "c b a")


@pytest.fixture
def settings(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluateSettings:
    monkeypatch.setenv("SFUMATO_CLIP_WEIGHTS", str(clip_folder))
    return EvaluateSettings(samples=8, actors=0, features="clip", metrics="clip_score")


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Eight pictures, each with a caption in a text file."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    for number, words in enumerate(WORDS):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(words + "\n")
    return folder


def by_hand(clip_folder: Path, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """The scores by transformers' own forward pass over pairs."""
    import transformers

    from sfumato.evaluation.features.clip import DEVIATION, MEAN

    network = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    x = nn.functional.interpolate(x, (28, 28), mode="bicubic", antialias=True).clamp(0, 255) / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    tokens = tokenizer(list(captions), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = network(pixel_values=x, **tokens)
    cosine = (out.image_embeds * out.text_embeds).sum(1).numpy()
    return 100 * np.maximum(cosine, 0)


def test_images_are_scored_with_the_captions_beside_them(
    settings: EvaluateSettings, captioned: Path, clip_folder: Path, tmp_path: Path
) -> None:
    pack(str(captioned), tmp_path / "shards")
    expected = by_hand(clip_folder, [picture(i) for i in range(8)], WORDS)
    assert expected.max() > 0
    for number, place in enumerate((captioned, tmp_path / "shards")):
        report = evaluate(
            Evaluation.of_images(
                settings,
                images=open_images(str(place)),
                reference=open_images(str(captioned)),
                out=tmp_path / f"out-{number}",
                cache=tmp_path / "cache",
            )
        )
        assert report.metrics["clip_score"] == pytest.approx(expected.mean(), rel=1e-3)
        details = report.details["clip_score"]
        assert details["of_real_images"] == pytest.approx(expected.mean(), rel=1e-3)
        assert details["real_images"] == 8
        interval = report.intervals["clip_score"]
        assert float(str(interval["low"])) < report.metrics["clip_score"] < float(str(interval["high"]))
        assert "bootstrap over 8 images" in str(interval["method"])


def test_what_is_missing_is_said_before_anything_is_scored(
    settings: EvaluateSettings, captioned: Path, clip_folder: Path, tmp_path: Path
) -> None:
    def run(images: Path, reference: Path = captioned, changed: EvaluateSettings = settings) -> None:
        evaluate(
            Evaluation.of_images(
                changed,
                images=open_images(str(images)),
                reference=open_images(str(reference)),
                out=tmp_path / "out",
                cache=tmp_path / "cache",
            )
        )

    plain = tmp_path / "plain"
    plain.mkdir()
    for number in range(8):
        Image.fromarray(picture(number)).save(plain / f"{number}.png")
    with pytest.raises(ConfigError, match="clip_score needs images with captions, and these have none"):
        run(plain)
    (captioned / "3.txt").unlink()
    with pytest.raises(DataError, match="3 has no caption: give every image one, or leave clip_score out"):
        run(captioned, plain)
    (captioned / "3.txt").write_text("a b")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((clip_folder / name).read_bytes())
    options = {"clip": {"weights": str(bare)}}
    with pytest.raises(CapabilityError, match="captions need a tokenizer"):
        run(captioned, plain, settings.model_copy(update={"feature_options": options}))
    with pytest.raises(ConfigError, match=r"clip_score is defined on features clip, got efficientnet_lite0"):
        run(captioned, plain, settings.model_copy(update={"features": "efficientnet_lite0"}))


# A model that takes captions ------------------------------------------------------------------------------


class Painting(Config):
    """Nothing to choose."""


class PainterConfig(FamilyConfig):
    """Paints the number of letters of a caption as brightness, with a little noise."""

    family: Literal["painter"] = "painter"
    sampling: Painting = Painting()

    def build(self, data: DataSpec) -> Painter:
        return Painter(data)

    @classmethod
    def tiny(cls) -> PainterConfig:
        return cls()

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        return (Condition("text", "text", "text", required=True),)


class Painter:
    """Implements `core.family.Family`."""

    samplers = ("brush",)
    phases = ()

    def __init__(self, data: DataSpec) -> None:
        self._data = data
        self.nets: Mapping[str, Any] = {"brush": Frozen(build=nn.Identity)}

    def prepare(self, nets: Nets, batch: Any, progress: Progress, rng: Any) -> Any:
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        captions = request.texts("text")
        assert captions is not None
        letters = torch.tensor([len(text) for text in captions]).float()
        noise = rng.normal(*self._data.shape)
        image: Tensor = nets["brush"]((letters / 8 - 0.5)[:, None, None, None] + 0.01 * noise)
        return image.clamp(-1, 1)


def test_a_model_that_takes_captions_draws_for_those_of_the_reference(
    settings: EvaluateSettings, captioned: Path, clip_folder: Path, tmp_path: Path
) -> None:
    reference = open_images(str(captioned))
    spec = DataSpec(3, 12, 10)
    generator = Generator(PainterConfig(), spec, {"brush": nn.Identity()}, digest="painter")

    def load(folder: Path, sampling: Mapping[str, Any]) -> GeneratorSource:
        return GeneratorSource(generator, sampling, "cpu", open_images(str(folder)))

    drawn: Drawn = load(captioned, {}).draw(0, seed=0, labels_B=None)
    assert len(drawn.images) == 64
    captions = [WORDS[i % 8] for i in range(64)]
    expected = [127.5 * (len(text) / 8 + 0.5) for text in captions]
    np.testing.assert_allclose(drawn.images.mean(axis=(1, 2, 3)), expected, atol=1)

    report = evaluate(
        Evaluation(
            settings.model_copy(update={"samples": 20}),
            load=load,
            model_folder=captioned,
            reference=reference,
            out=tmp_path / "out",
            cache=tmp_path / "cache",
        )
    )
    scores = by_hand(clip_folder, drawn.images[:20], captions[:20])
    assert report.metrics["clip_score"] == pytest.approx(scores.mean(), rel=1e-3)
    (captioned / "0.txt").unlink()
    with pytest.raises(DataError, match="0 has no caption"):
        evaluate(
            Evaluation(
                settings, load=load, model_folder=captioned, reference=reference, out=tmp_path, cache=tmp_path
            )
        )
