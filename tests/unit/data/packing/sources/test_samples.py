"""What `sfumato sample` wrote becomes a data set that says that it was generated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.pack import pack
from sfumato.data.packing.source import Opening
from sfumato.data.packing.sources.samples import SamplesSource
from sfumato.data.packing.tasks import in_process
from sfumato.errors import DataError


def folder_of(place: Path, *classes: str | None) -> Path:
    place.mkdir()
    lines = []
    for number, name in enumerate(classes):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(place / f"{number:06d}.png")
        line = {"file": f"{number:06d}.png", "index": number, "seed": 3, "class": name, "model": "base"}
        lines.append({**line, "model_digest": "d", "conditions": {"text": f"shape {number}"}})
    lines.append({"file": None, "index": 9})  # refused by a filter
    (place / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


def opening(scratch: Path) -> Opening:
    return Opening(max_pixels=10**6, scratch=scratch, run=in_process, progress=lambda done, total: None)


def test_samples_keep_their_texts_and_say_what_made_them(tmp_path: Path) -> None:
    source = SamplesSource(path=str(folder_of(tmp_path / "drawn", None, None)))
    opened = source.open(opening(tmp_path))
    assert [opened.read(row).caption for row in range(2)] == ["shape 0", "shape 1"]
    assert opened.labels is None
    meta = opened.read(1).meta
    assert meta == {"generated": True, "model": "base", "model_digest": "d", "seed": 3, "index": 1}
    pack(source, tmp_path / "data")
    assert (Manifest.load(tmp_path / "data").samples, Manifest.load(tmp_path / "data").captions) == (2, 2)


def test_classes_are_those_that_were_asked_for(tmp_path: Path) -> None:
    opened = SamplesSource(path=str(folder_of(tmp_path / "drawn", "cat", "ant"))).open(opening(tmp_path))
    assert opened.labels is not None
    assert [opened.classes[label] for label in opened.labels] == ["cat", "ant"]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as the lines of samples"):
        SamplesSource(path=str(tmp_path)).open(opening(tmp_path))
    (tmp_path / "samples.jsonl").write_text("\n")
    with pytest.raises(DataError, match="lists no images"):
        SamplesSource(path=str(tmp_path)).open(opening(tmp_path))
