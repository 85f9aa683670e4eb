"""Emoji as their npm packages hold them: a list of names, and drawings with transparency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from sfumato.data.packing.pack import pack
from sfumato.data.packing.recognition import kind_of
from sfumato.data.packing.sources.emoji import EmojiSource
from sfumato.data.reading.local_reader import read_all
from sfumato.errors import DataError


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """As in emoji-datasource 16."""
    return {
        "name": f"FACE {number}",
        "unified": f"1F60{number}",
        "image": f"1f60{number}.png",
        "short_name": f"face_{number}",
        "short_names": [f"face_{number}", f"smiling_{number}"],
        "category": "Objects" if number % 2 else "Animals & Nature",
        "subcategory": "face",
        "has_img_google": True,
    } | changes


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "package"
    images = root / "img" / "google" / "64"
    images.mkdir(parents=True)
    for number in range(6):
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[16:48, 16:48] = (40 * number, 0, 0, 255)
        Image.fromarray(pixels).save(images / f"1f60{number}.png")
    entries = [entry(number) for number in range(6)] + [entry(7, has_img_google=False)]
    (root / "emoji.json").write_text(json.dumps(entries))
    return root


def test_names_become_captions_and_categories_classes(package: Path, tmp_path: Path) -> None:
    assert kind_of(str(package)) == "emoji"
    manifest = pack(str(package), tmp_path / "out").manifest
    assert (manifest.samples, manifest.captions, manifest.classes) == (6, 6, ("Animals & Nature", "Objects"))
    (columns,) = read_all(tmp_path / "out", 64, text=True)
    for image, label, text in zip(columns["image"], columns["label"], columns["text"], strict=True):
        number = int(text.removeprefix("face "))
        assert label == number % 2
        assert image[32, 32].tolist() == [40 * number, 0, 0]
        assert image[0, 0].tolist() == [255, 255, 255], "on white"


def test_faults_name_the_emoji(package: Path, tmp_path: Path) -> None:
    entries = [entry(0), entry(1, image="../../secret.png"), entry(9), entry(2, name=None, short_names=[])]
    (package / "emoji.json").write_text(json.dumps(entries))
    report = pack(str(package), tmp_path / "out", on_error="skip")
    assert report.manifest.samples == 1
    assert sorted(fault.reason for fault in report.skipped) == [
        "it has no name",
        "its image is '../../secret.png'; wanted the name of a file",
        "no file img/google/64/1f609.png",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not a JSON file"), ("{}", "wanted a list of emoji"), ("[]", "names no usable drawing of google")],
)
def test_bad_lists_get_one_line(content: str, words: str, package: Path, tmp_path: Path) -> None:
    (package / "emoji.json").write_text(content)
    with pytest.raises(DataError, match=words):
        pack(str(package), tmp_path / "out")


def test_vendors_and_columns(package: Path, tmp_path: Path) -> None:
    (package / "img" / "twitter" / "64").mkdir(parents=True)
    with pytest.raises(DataError, match="drawings of google, twitter: set vendor to one of them"):
        pack(str(package), tmp_path / "out")
    bare = EmojiSource(path=str(package), vendor="google", columns={})
    assert dict(pack(bare, tmp_path / "bare").manifest.columns) == {}
    with pytest.raises(ValidationError, match="emoji have the column text as it is, or none"):
        EmojiSource.model_validate({"path": "x", "columns": {"edge": {"kind": "image", "member": "e"}}})
