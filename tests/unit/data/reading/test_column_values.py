"""All texts of a data set, from its indexes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.format.index import load
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.data.reading.column_values import texts_of
from sfumato.errors import ConfigError


@pytest.fixture
def packed(tmp_path: Path) -> str:
    """Three images: captions as files, and a column of several texts."""
    scratch, folder = tmp_path / "scratch", tmp_path / "packed"
    scratch.mkdir()
    for number, caption in enumerate(("one", None, "three")):
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(scratch / f"{number}.png")
        if caption:
            (scratch / f"{number}.txt").write_text(caption)
        (scratch / f"{number}.json").write_text(f'{{"said": ["{number}", "number {number}"]}}')
    columns = {"told": {"kind": "text", "field": "said"}}
    pack(FolderSource(path=str(scratch), columns=columns), folder, shard_size=2)
    return str(folder)


def test_captions_in_order_empty_where_there_is_none(packed: str) -> None:
    manifest = Manifest.load(packed)
    captions = dict(zip(keys(packed), texts_of(packed, manifest, "text"), strict=True))
    assert captions == {"0": "one", "1": "", "2": "three"}


def test_all_texts_of_a_sample(packed: str) -> None:
    found = list(texts_of(packed, Manifest.load(packed), "told"))
    assert found == [text for key in keys(packed) for text in (key, f"number {key}")]


def keys(packed: str) -> list[str]:
    """The files' names without endings, in the manifest's order."""
    return [key for shard in load(packed, Manifest.load(packed)) for key in shard.keys.to_pylist()]


def test_an_unknown_column_is_a_line(packed: str) -> None:
    with pytest.raises(ConfigError, match="no texts in a column 'txt'; did you mean 'text'"):
        list(texts_of(packed, Manifest.load(packed), "txt"))
    with pytest.raises(ConfigError, match="no texts in a column 'image'"):
        list(texts_of(packed, Manifest.load(packed), "image"))
