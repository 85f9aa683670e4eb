"""`sfumato data index | inspect | verify` and the validation split, on real files and by the command line."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from repository import ROOT
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from sfumato.cli import app
from sfumato.core.seeds import derive
from sfumato.data.format import index
from sfumato.data.format.images import decoded
from sfumato.data.format.manifest import Manifest
from sfumato.data.inspection import inspect
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.digits import DigitsSource
from sfumato.data.reading.local_reader import read_all
from sfumato.data.verification import check

SHARED = Path(os.environ.get("SFUMATO_SHARED_DATA", ROOT.parent / "shared" / "data"))


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


def keys_of(folder: Path) -> set[str]:
    return {key for rows in index.load(folder, Manifest.load(folder)) for key in rows.keys.to_pylist()}


def test_the_split_is_a_hash_of_the_key(tmp_path: Path) -> None:
    report = pack(DigitsSource(val=0.25), tmp_path / "d", shard_size=1000)
    train, val = keys_of(tmp_path / "d" / "train"), keys_of(tmp_path / "d" / "val")
    everything = {f"{row:08d}" for row in range(1797)}
    assert train | val == everything
    assert not train & val
    assert val == {key for key in everything if derive("val", key) / 2**63 < 0.25}
    assert abs(len(val) / 1797 - 0.25) < 0.04
    assert {split: manifest.split for split, manifest in report.manifests.items()} == {
        "train": "train",
        "val": "val",
    }
    # The same samples are held out when others are added or the share grows.
    pack(DigitsSource(val=0.5), tmp_path / "half", shard_size=1000)
    assert val < keys_of(tmp_path / "half" / "val")


def test_inspect_says_what_numpy_says(digits_data: Path, tmp_path: Path) -> None:
    found, pictures = inspect(digits_data, measure=0, pictures=30)
    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)) / 255
    assert found["mean"] == pytest.approx([levels.mean()], abs=1e-6)
    assert found["std"] == pytest.approx([levels.std()], abs=1e-6)
    assert list(found["classes"].values()) == np.bincount(digits.target).tolist()
    assert (found["samples"], found["sizes"], found["undecodable"]) == (1797, {"8x8": 1797}, 0)
    assert len(pictures) == 30
    few, _ = inspect(digits_data, measure=300)
    assert few["mean"] == pytest.approx(found["mean"], abs=0.02)
    assert few["mean"] != found["mean"]
    status, out = call("data", "inspect", str(digits_data), "--sheet", str(tmp_path / "s.png"), "--json")
    assert (status, json.loads(out)["digest"]) == (0, Manifest.load(digits_data).digest)
    sheet = Image.open(tmp_path / "s.png")
    assert sheet.size == (980, 980)
    assert len(np.unique(np.asarray(sheet))) > 10
    assert "▇" in call("data", "inspect", str(digits_data))[1]


def test_verify_lists_what_is_bad_and_leaves_with_status_1(tmp_path: Path) -> None:
    manifest = pack("digits", tmp_path / "d", shard_size=600).manifest
    assert call("data", "verify", str(tmp_path / "d"))[0] == 0
    rows = index.load(tmp_path / "d", manifest)
    first, second, third = (tmp_path / "d" / shard.name for shard in manifest.shards)
    data = bytearray(first.read_bytes())
    at = int(rows[0].offsets[5])
    data[at : at + 8] = b"no image"
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-700])
    third.unlink()
    status, out = call("data", "verify", str(tmp_path / "d"), "--json")
    report = json.loads(out)
    assert (status, report["good"]) == (1, False)
    bad = {(item["shard"], item["key"]): item["reason"] for item in report["bad"]}
    assert bad[first.name, ""].startswith("its checksum")
    assert bad[first.name, rows[0].keys[5].as_py()].startswith("not an image")
    assert bad[second.name, ""].startswith("truncated")
    assert bad[third.name, ""] == "missing"
    assert len([key for shard, key in bad if shard == first.name]) == 2
    assert call("data", "verify", str(tmp_path / "nowhere"))[0] != 0


def test_verify_finds_an_index_of_other_places(tmp_path: Path) -> None:
    manifest = pack("digits", tmp_path / "d").manifest
    (rows,) = index.load(tmp_path / "d", manifest)
    moved = index.ShardIndex(rows.keys, rows.offsets + 512, rows.sizes, rows.labels, rows.captions)
    moved.save(tmp_path / "d", manifest.shards[0])
    index.load_shard.cache_clear()
    faults = check(tmp_path / "d", decode=False)[1]
    assert len(faults) >= 1797
    assert {fault.reason for fault in faults} == {"is not where the index says"}


@pytest.mark.parametrize("sorted_by_class", [True, False])
def test_index_warns_of_a_set_that_is_sorted_by_class(tmp_path: Path, sorted_by_class: bool) -> None:
    pixels = io.BytesIO()
    Image.new("L", (8, 8)).save(pixels, "PNG")
    for shard in range(5):
        with tarfile.open(tmp_path / f"set-{shard}.tar", "w") as tar:
            for row in range(20):
                label = shard if sorted_by_class else row % 5
                for extension, content in (("png", pixels.getvalue()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{shard}-{row:02}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    status, out = call("data", "index", str(tmp_path), "--json")
    warnings = json.loads(out)["warnings"]
    assert status == 0 and len(warnings) == sorted_by_class
    assert all("1 classes on average, where 5 are" in line for line in warnings)


@pytest.mark.skipif(not (SHARED / "emoji").is_dir(), reason="no SFUMATO_SHARED_DATA with the folder emoji")
def test_an_existing_data_set_is_trained_on_as_it_is(tmp_path: Path) -> None:
    """Several images a sample, captions, classes in JSON, and a part of the tars in a folder."""
    shards = "emoji-val-*.tar"
    command = ["data", "index", str(SHARED / "emoji"), "--dest", str(tmp_path / "e"), "--shards", shards]
    command += ["--image", "google.png", "--label", "json.category", "--channels", "3", "--json"]
    status, out = call(*command)
    report = json.loads(out)
    assert (status, report["samples"], report["captions"], report["image"]) == (0, 200, 200, [3, 64, 64])
    assert report["ignored"] == {"twitter.png": 200}
    assert "Symbols" in report["classes"]
    assert sum(len(columns["image"]) for columns in read_all(tmp_path / "e")) == 200
    assert call("data", "verify", str(tmp_path / "e"))[0] == 0
    (tar,) = (tmp_path / "e").glob("*.tar")
    assert tar.is_symlink()
    (rows,) = index.load(tmp_path / "e", Manifest.load(tmp_path / "e"))
    data = tar.read_bytes()[int(rows.offsets[0]) :][: int(rows.sizes[0])]
    assert decoded(data, Manifest.load(tmp_path / "e").image).shape == (64, 64, 3)
    assert rows.captions[0].as_py()
