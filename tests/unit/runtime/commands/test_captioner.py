"""Captions by image-to-text models with random weights, against transformers' own calls for one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from text_folders import save_tokenizer, text_model

from sfumato.core.rng import seeded
from sfumato.data.columns import spec_of
from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.packing.captioning import finish_captions
from sfumato.data.packing.pack import pack
from sfumato.data.packing.placing import place_set
from sfumato.data.reading import local_reader
from sfumato.data.verification import check
from sfumato.errors import ConfigError, DataError
from sfumato.runtime.commands.precompute_jobs import caption_job

transformers = pytest.importorskip("transformers")
_SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
_IMAGES = {**_SMALL, "image_size": 8, "patch_size": 4}


def images_prepared() -> Any:
    return transformers.ViTImageProcessorPil(size={"height": 8, "width": 8})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT and a language model whose weights are large enough to say different things."""
    folder = tmp_path_factory.mktemp("captioner")
    with seeded(0, "captioner"):
        config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.ViTConfig(**_IMAGES), text_model("gpt2").config
        )
        network = transformers.VisionEncoderDecoderModel(config).eval()
        for name, weight in network.named_parameters():
            torch.nn.init.normal_(weight, std=5.0 if "cross" in name else 1.0)
    letters = save_tokenizer(folder)("abcdefghijklmnop", add_special_tokens=False)["input_ids"]
    network.generation_config.suppress_tokens = sorted(set(range(262)) - set(letters))
    network.generation_config.decoder_start_token_id = 0
    network.generation_config.eos_token_id = 1
    network.generation_config.pad_token_id = 1
    network.save_pretrained(folder)
    images_prepared().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures of stripes without captions."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "in").mkdir()
    for number in range(7):
        picture = Image.new("RGB", (8, 8), (36 * number, 0, 255 - 36 * number))
        picture.paste((255, 255, 0), (0, 0, number, 8))
        picture.save(folder / "in" / f"{number}.png")
    pack(str(folder / "in"), folder / "data", shard_size=4)
    return folder / "data"


def captioned(model: Path, data: Path, dest: Path, **options: Any) -> Manifest:
    """As actors do it."""
    asked = {"tokens": 6, "name": None, "prompt": None, **options}
    job, before = caption_job(model, str(data), str(dest), **asked), Manifest.load(data)
    place_set(str(data), before, str(dest))
    captioner = job.encoder("cpu")
    for number in range(len(before.shards)):
        job.perform(number, before, captioner)
    return finish_captions(before, job.work)[0]


def texts(folder: Path, **settings: Any) -> dict[float, str]:
    """By the mean of its image, what training reads of each sample."""
    data = DataSettings(path=str(folder), streams=1, shuffle_window=4, **settings)
    batch = next(local_reader.read(data, Manifest.load(folder), seed=1, batch=7))[0].batch
    names = [name for name in batch if name not in ("image", "label")]
    assert len(names) == 1
    return dict(zip(batch["image"].float().mean(dim=(1, 2, 3)).tolist(), batch[names[0]], strict=True))


def test_captions_are_those_of_transformers(model: Path, pictures: Path, tmp_path: Path) -> None:
    manifest = captioned(model, pictures, tmp_path / "data")
    verify(tmp_path / "data", "checksum")
    assert not check(tmp_path / "data")[1]
    assert manifest.encoders["text"].family == "vision-encoder-decoder"
    network = transformers.VisionEncoderDecoderModel.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    found = texts(tmp_path / "data")
    assert len(set(found.values())) > 1, "pictures say different things"
    for file in sorted((pictures.parent / "in").iterdir()):
        picture = Image.open(file)
        pixels = images_prepared()(images=[picture], return_tensors="pt")
        ids = network.generate(**pixels, max_new_tokens=6, do_sample=False)
        (told,) = tokenizer.batch_decode(ids, skip_special_tokens=True)
        mean = torch.tensor(list(picture.tobytes())).float().mean().item()
        near = min(found, key=lambda value: abs(value - mean))
        assert found[near] == " ".join(told.split())


def test_they_are_a_column_of_any_name(model: Path, pictures: Path, tmp_path: Path) -> None:
    before = captioned(model, pictures, tmp_path / "data")
    again = captioned(model, tmp_path / "data", tmp_path / "data", name="second", tokens=3)
    assert {"text", "second"} == again.columns.keys()
    assert again.digest == before.digest
    second = texts(tmp_path / "data", columns=("second",))
    assert "second" in spec_of(DataSettings(path="x", columns=("second",)), again).columns
    assert second != texts(tmp_path / "data", columns=("text",))
    work = caption_job(model, str(pictures), str(tmp_path / "x"), tokens=3, name=None, prompt=None).work
    other = before.model_copy(update={"columns": {}, "encoders": {}, "captions": 7})
    with pytest.raises(DataError, match="7 images of in have captions already"):
        work.check(other)


def test_a_model_that_is_told_how_to_begin(pictures: Path, tmp_path: Path) -> None:
    """BLIP, whose processor takes a prompt; the caption begins with it."""
    text = {
        **_SMALL,
        "vocab_size": 262,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "sep_token_id": 1,
    }
    with seeded(0, "blip"):
        config = transformers.BlipConfig(
            text_config={**text, "encoder_hidden_size": 8}, vision_config=_IMAGES
        )
        network = transformers.BlipForConditionalGeneration(config).eval()
    network.save_pretrained(tmp_path / "blip")
    images = transformers.BlipImageProcessorPil(size={"height": 8, "width": 8})
    transformers.BlipProcessor(images, save_tokenizer(tmp_path / "blip")).save_pretrained(tmp_path / "blip")
    captioned(tmp_path / "blip", pictures, tmp_path / "data", prompt="the he")
    assert all(text.startswith("the he") for text in texts(tmp_path / "data").values())


def test_what_writes_no_captions_is_one_line(model: Path, pictures: Path, tmp_path: Path) -> None:
    text_model("bert").save_pretrained(tmp_path / "bert")
    for folder, name, words in (
        (tmp_path / "none", None, "is no folder"),
        (tmp_path, None, r"has no config\.json with model\.safetensors"),
        (tmp_path / "bert", None, "a model of type 'bert', which writes no texts of images"),
        (model, "image", "--name: lower-case letters"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            caption_job(folder, str(pictures), str(tmp_path / "x"), tokens=3, name=name, prompt=None)
        assert "\n" not in str(error.value)
