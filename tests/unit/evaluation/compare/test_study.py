"""From the votes of a study to a packed data set of pairs, which preference tuning reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.core.conditions import Condition
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.listing import ListingSource
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.errors import DataError
from sfumato.evaluation.compare.study import IMAGES, KEY, picture, write_pairs


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    (folder / IMAGES).mkdir(parents=True)
    questions = [{"id": n, "left": "a", "right": "b", "image": n // 2} for n in range(4)]
    (folder / KEY).write_text(json.dumps({"study": "s", "runs": ["a", "b"], "questions": questions}))
    for number in range(4):
        for side, value in (("left", 10 * number), ("right", 200 + number)):
            pixels = np.full((8, 8, 3), value, np.uint8)
            Image.fromarray(pixels).save(folder / IMAGES / picture(number, side))
    return folder


def votes(folder: Path, *choices: tuple[int, str], study: str = "s") -> Path:
    file = folder / "ann.json"
    answers: list[dict[str, Any]] = [{"id": number, "choice": choice} for number, choice in choices]
    file.write_text(json.dumps({"study": study, "votes": answers}))
    return file


def test_what_was_preferred_is_packed_with_what_was_not(study: Path, tmp_path: Path) -> None:
    file = votes(study, (0, "left"), (1, "same"), (3, "left"), (3, "right"))
    place, number = write_pairs([file], study, ["a red circle", "a blue square"])
    assert number == 2, "draws are left out, and the last answer counts"
    columns = {"rejected": {"kind": "image", "field": "rejected"}}
    source = ListingSource.model_validate({"path": str(place), "columns": columns})
    pack(source, tmp_path / "data")
    wanted = [Condition("image", "image", "image"), Condition("rejected", "rejected", "image")]
    rows = rows_of_data(str(tmp_path / "data"), wanted)

    def level(name: str) -> list[int]:
        return [round((float(image.mean()) + 1) * 127.5) for image in rows[name].read([0, 1])]  # type: ignore[union-attr]

    assert sorted(zip(level("image"), level("rejected"), strict=True)) == [(0, 200), (203, 30)]
    captions = sorted(json.loads(line)["text"] for line in place.read_text().splitlines())
    assert captions == ["a blue square", "a red circle"]


def test_votes_that_say_nothing_are_refused(study: Path) -> None:
    with pytest.raises(DataError, match="no vote prefers a picture"):
        write_pairs([votes(study, (0, "same"))], study)
    with pytest.raises(DataError, match="votes of another study"):
        write_pairs([votes(study, (0, "left"), study="t")], study)
    with pytest.raises(DataError, match="is invalid: a vote is an id"):
        write_pairs([votes(study, (9, "left"))], study)
    key = json.loads((study / KEY).read_text())
    for question in key["questions"]:
        del question["image"]
    (study / KEY).write_text(json.dumps(key))
    with pytest.raises(DataError, match="does not say which pictures it shows"):
        write_pairs([votes(study, (0, "left"))], study)
