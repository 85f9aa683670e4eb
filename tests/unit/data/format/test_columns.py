"""Manifests with further columns, and those of before: the same bytes, digests and arrays.

`older_set` was written by version 1.0 (`sfumato precompute` of six images of 4x4, with a stand-in for the
encoder: latent_mean is the sum of groups of two pixels, latent_std that over 512).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.core.batch import to_device
from sfumato.core.columns import Column
from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import ImageInfo, Manifest, verify
from sfumato.data.order.pools import content_digest
from sfumato.data.reading import local_reader
from sfumato.data.reading.transforms import Crop, Flip
from sfumato.data.verification import check
from sfumato.errors import DataError

OLDER = Path(__file__).parent / "older_set"
SHARD = {"name": "a-000000.tar", "samples": 2, "bytes": 10, "sha256": "0" * 64, "image": None}
PLAIN = {
    "version": 1,
    "name": "a",
    "shards": [SHARD],
    "image": {"channels": 1, "height": 8, "width": 6},
    "classes": ["x", "y"],
    "captions": 1,
    "split": "",
    "source": "somewhere",
    "licence": "",
    "encoder": None,
}
CONTROL = {"kind": "image", "dtype": "uint8", "shape": [3, 4, 3], "stored": "members"}


def test_a_set_without_further_columns_is_written_as_before(tmp_path: Path) -> None:
    text = json.dumps(PLAIN, indent=2, ensure_ascii=False) + "\n"
    (tmp_path / "manifest.json").write_text(text)
    manifest = Manifest.load(tmp_path)
    (tmp_path / "out").mkdir()
    manifest.save(tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_text() == text
    assert list(manifest.spec.columns) == ["image", "label", "text"]


def test_columns_do_not_change_the_digest(tmp_path: Path) -> None:
    plain = Manifest.model_validate(PLAIN)
    more = Manifest.model_validate({**PLAIN, "columns": {"control": CONTROL}})
    assert more.digest == plain.digest
    assert more.spec.extra["control"] == Column("image", "uint8", (3, 4, 3))
    more.save(tmp_path)
    assert Manifest.load(tmp_path) == more
    # What a run reads identifies it, though.
    settings = DataSettings(path=str(tmp_path))
    assert content_digest(settings, more) == plain.digest
    read = settings.model_copy(update={"columns": ("control",)})
    assert content_digest(read, more) != plain.digest


def test_further_images_follow_the_size_of_their_shard() -> None:
    manifest = Manifest.model_validate({**PLAIN, "columns": {"control": CONTROL}})
    look = manifest.further_images(["control"], ImageInfo(channels=1, height=12, width=8))["control"]
    assert (look.channels, look.height, look.width) == (3, 6, 4)
    with pytest.raises(DataError, match="control is 3x4 beside images of 6x8, which does not divide"):
        manifest.further_images(["control"], ImageInfo(channels=1, height=8, width=5))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": CONTROL}, "cannot name a further column"),
        ({"control": {**CONTROL, "dtype": "float32"}}, "a column of kind image is uint8"),
        ({"control": {**CONTROL, "encoder": "vae"}}, "made by the encoder 'vae', which is not described"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_one_line(tmp_path: Path, columns: object, words: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**PLAIN, "columns": columns}))
    with pytest.raises(DataError, match=words) as error:
        Manifest.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_set_of_one_encoder_reads_as_before() -> None:
    manifest = verify(OLDER, "checksum")
    assert manifest.digest == "fafb07a96747fdc840680bfa51669cc1eb6f6f25c9941d09c70723a28616d049"
    assert list(manifest.encoders) == ["latents"]
    assert manifest.encoders["latents"].digest == "ab" * 32
    assert manifest.columns["latent_mean"].column == Column("array", "float32", (2, 2, 2))
    settings = DataSettings(path=str(OLDER), streams=1, shuffle_window=6)
    (micro,) = next(local_reader.read(settings, manifest, seed=1, batch=6))
    pixels = micro.batch["image"].numpy().reshape(6, 2, 2, 2, 2).astype(np.float32)
    assert np.array_equal(micro.batch["latent_mean"].numpy(), pixels.sum(-1))
    assert np.array_equal(micro.batch["latent_std"].numpy(), pixels.sum(-1) / 512)
    assert check(OLDER)[1] == []
    assert content_digest(settings, manifest) == manifest.digest
    # Its arrays can be left out.
    without = settings.model_copy(update={"columns": ()})
    (micro,) = next(local_reader.read(without, manifest, seed=1, batch=6))
    assert set(micro.batch) == {"image", "label"}


def test_a_damaged_older_set_is_one_line(tmp_path: Path) -> None:
    shutil.copytree(OLDER, tmp_path / "set")
    places = next((tmp_path / "set").glob("*.arrays.arrow"))
    places.write_bytes(places.read_bytes()[:100])
    settings = DataSettings(path=str(tmp_path / "set"), streams=1, shuffle_window=6)
    with pytest.raises(DataError, match=r"arrays\.arrow: damaged"):
        next(local_reader.read(settings, Manifest.load(tmp_path / "set"), seed=1, batch=6))


def test_batches_have_the_bits_that_version_1_0_gave_them() -> None:
    settings = DataSettings(
        path=str(OLDER),
        streams=2,
        shuffle_window=3,
        transforms=(Flip(), Crop(pad=2), Crop(pad=1, fill="zero")),
    )
    digest = hashlib.sha256()
    for (micro,) in islice(local_reader.read(settings, Manifest.load(OLDER), seed=9, batch=4), 12):
        batch = to_device(micro.batch, torch.device("cpu"))
        for name in sorted(batch):
            digest.update(name.encode() + str(batch[name].dtype).encode())
            digest.update(batch[name].contiguous().numpy().tobytes())
    assert digest.hexdigest() == "bf123b99e3c09fede377ea57001dc3cf501bd0618702b1724ae4c47ff71c2c2c"
