"""The packed set of shapes: captions and maps as columns, the same bytes wherever it is packed."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.pack import pack
from sfumato.data.packing.recognition import kind_of
from sfumato.data.packing.sources.shapes import ShapesSource
from sfumato.data.reading.local_reader import read_all
from sfumato.data.shapes.claims import claim_of
from sfumato.data.shapes.contents import contents_of
from sfumato.data.shapes.phrases import captions
from sfumato.data.shapes.rendering import render
from sfumato.data.shapes.scenes import scenes


def test_what_is_packed_is_what_was_drawn(tmp_path: Path) -> None:
    assert kind_of("shapes") == "shapes"
    manifest = pack(ShapesSource(images=150, seed=7, part="both"), tmp_path / "set", shard_size=64).manifest
    assert manifest.shard_samples == (64, 64, 22)
    assert manifest.captions == 150
    kinds = {name: info.column.kind for name, info in manifest.columns.items()}
    assert kinds == {"text": "text", "edge": "image", "mask": "image", "depth": "image"}
    drawn = scenes(7, np.arange(150), "both", 32)
    pictures, texts = render(drawn), captions(drawn, 7)
    seen = set()
    for columns in read_all(tmp_path / "set", 64, text=True):
        for image, caption in zip(columns["image"], columns["text"], strict=True):
            (row,) = (n for n in range(150) if (pictures.image[n] == image).all() and texts[n][0] == caption)
            seen.add(row)
    assert len(seen) == 150


def test_the_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    def digest(name: str, **options: int) -> str:
        return pack(ShapesSource(images=50, **options), tmp_path / name).manifest.digest

    assert digest("a") == digest("b")
    assert digest("c", seed=1) != digest("a2")


def test_columns_may_be_left_out_but_not_redefined(tmp_path: Path) -> None:
    manifest = pack(ShapesSource(images=20, columns={}), tmp_path / "bare").manifest
    assert (manifest.captions, dict(manifest.columns)) == (20, {})
    with pytest.raises(ValidationError, match="shapes have the columns text, edge, mask, depth as they are"):
        ShapesSource.model_validate({"columns": {"edge": {"kind": "image", "member": "line"}}})
    with pytest.raises(ValidationError, match="greater than or equal to 32"):
        ShapesSource(size=16)


def test_contents_are_in_the_metadata(tmp_path: Path) -> None:
    pack(ShapesSource(images=10), tmp_path / "set")
    (shard,) = Manifest.load(tmp_path / "set").shards
    told = contents_of(scenes(0, np.arange(10), "seen", 32))
    with tarfile.open(tmp_path / "set" / shard.name) as archive:
        for row in range(10):
            file = archive.extractfile(f"{row:08d}.json")
            assert file is not None
            meta = json.loads(file.read())
            assert meta["background"] == told[row].background
            assert [each["shape"] for each in meta["objects"]] == [each.shape for each in told[row].things]


def test_some_categories_alone(tmp_path: Path) -> None:
    options = {"images": 60, "categories": "single_object,colours", "columns": {}}
    pack(ShapesSource.model_validate(options), tmp_path / "set")
    captions = [text for columns in read_all(tmp_path / "set", 64, text=True) for text in columns["text"]]
    claims = [claim_of(text) for text in captions]
    assert {claim.category for claim in claims if claim} == {"single_object", "colours"}
    assert len(claims) == 60 and None not in claims
    with pytest.raises(ValidationError, match="part=held_out needs a category that combines"):
        ShapesSource.model_validate({"part": "held_out", "categories": "single_object"})
    with pytest.raises(ValidationError, match="categories"):
        ShapesSource.model_validate({"categories": "colors"})
