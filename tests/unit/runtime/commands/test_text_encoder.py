"""Captions encoded beforehand: a CLIP text model with random weights, against transformers' own calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from library_folders import save_text_encoder
from PIL import Image

from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.packing.pack import pack
from sfumato.data.packing.placing import place_set
from sfumato.data.packing.precompute import encode_shard, finish
from sfumato.data.reading import local_reader
from sfumato.errors import ConfigError
from sfumato.runtime.commands.precompute_jobs import jobs_of

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, every fourth without a caption."""
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "in").mkdir()
    for number in range(12):
        Image.new("L", (8, 8), 20 * number).save(folder / "in" / f"{number:02d}.png")
        if number % 4:
            (folder / "in" / f"{number:02d}.txt").write_text("a b c c b"[: 2 * (number % 4) + 1])
    pack(str(folder / "in"), folder / "data", shard_size=5)
    return folder / "data"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder of random weights, in a folder as it is published."""
    return save_text_encoder(tmp_path_factory.mktemp("clip"))


def test_captions_are_encoded_as_transformers_does(clip: Path, captioned: Path, tmp_path: Path) -> None:
    dest = str(tmp_path / "text")
    (job,) = jobs_of(str(clip), str(captioned), dest, "text", tmp_path, tokens=7)
    encoder, before = job.encoder("cpu"), Manifest.load(captioned)
    place_set(str(captioned), before, dest)
    files = [encode_shard(job.folder, before, n, encoder, job.addition) for n in range(len(before.shards))]
    finish(before, files, job.addition)
    manifest = verify(dest, "checksum")
    assert (manifest.captions, manifest.encoders["text"].family) == (9, "clip")
    data = DataSettings(path=str(tmp_path / "text"), streams=1, shuffle_window=4, text=True)
    batch = next(local_reader.read(data, manifest, seed=1, batch=12))[0].batch
    model = transformers.CLIPTextModel.from_pretrained(clip).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip)
    assert {len(caption.split()) for caption in batch["text"]} == {0, 2, 3, 4}
    for row, caption in enumerate(batch["text"]):
        alone = tokenizer([caption], return_tensors="pt")
        count = alone["input_ids"].shape[1]
        with torch.no_grad():
            expected = model(**alone).last_hidden_state[0]
        assert batch["text_mask"][row].tolist() == [1] * count + [0] * (7 - count)
        torch.testing.assert_close(batch["text_embedding"][row, :count], expected, rtol=1e-5, atol=1e-6)
        assert (batch["text_embedding"][row, count:] == 0).all()


def test_what_cannot_encode_captions_is_one_line(
    clip: Path, captioned: Path, digits_data: Path, tmp_path: Path
) -> None:
    for target, data, kind, tokens, words in (
        (clip, digits_data, "text", None, "no sample of digits has a caption"),
        (clip, captioned, "text", 10, "got 10, the model has places for 9"),
        (tmp_path, captioned, "text", None, r"has no config\.json and no model\.safetensors"),
        (tmp_path, captioned, "codes", 3, "--tokens=3 counts the tokens of texts: add --arrays text"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            jobs_of(str(target), str(data), str(tmp_path / "x"), kind, tmp_path, tokens=tokens)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
