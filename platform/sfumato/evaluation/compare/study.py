"""A blind study: a page that asks which of two images is better, and the key that names their runs.

Both images of a question have the same seed and class, if the runs were evaluated alike. The seed determines
which run is on which side, and the order of the questions. The page names no run; the author of the study
keeps the key. A voter's browser keeps the answers and saves them as a file; nothing is sent anywhere.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.core.seeds import derive
from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.compare.page import render
from sfumato.evaluation.compare.runs import EvaluatedRun
from sfumato.evaluation.compare.votes import Vote
from sfumato.evaluation.statistics import UInt8Array
from sfumato.evaluation.store import digest, write_bytes, write_json
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.door import Door
from sfumato.sampling.grid import image_grid, to_pil

PAGE = "study.html"
KEY = "key.json"
PAIRS = "pairs.jsonl"
IMAGES = "images"
"""Folder of the pictures that the page shows, in their own size."""
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Question:
    """Image `image` of two runs, by position; the first is shown on the left."""

    image: int
    left: int
    right: int


def questions(runs: int, images: int, seed: int) -> list[Question]:
    """Every image of every two runs once, in random order, on random sides."""
    rng = np.random.default_rng(derive(seed, "study"))
    pairs = list(itertools.combinations(range(runs), 2))
    found = []
    for image in range(images):
        for first, second in pairs:
            left, right = (first, second) if rng.integers(2) else (second, first)
            found.append(Question(image, left, right))
    return [found[place] for place in rng.permutation(len(found))]


def write_study(runs: Sequence[EvaluatedRun], folder: Path, *, images: int, seed: int) -> int:
    """Writes the page and the key into `folder`; returns the number of questions.

    Raises ConfigError for fewer than two runs, DataError if a run kept no images.
    """
    if len(runs) < 2:
        raise ConfigError("a study compares two runs or more; name them all")
    if (folder / KEY).exists():
        raise ConfigError(f"{folder} already holds a study, whose votes would lose their key; name another")
    doors = [_door(run) for run in runs]
    shown = [door.pixels(_images(run, images))[0] for run, door in zip(runs, doors, strict=True)]
    asked = questions(len(runs), min(map(len, shown)), seed)
    names = [run.name for run in runs]
    study = digest(FORMAT, names, [run.report.source_digest for run in runs], images, seed)
    page = render(
        "study.html",
        study=study,
        questions=[
            {
                "id": number,
                "left": _uri(shown[q.left][q.image], doors[q.left]),
                "right": _uri(shown[q.right][q.image], doors[q.right]),
            }
            for number, q in enumerate(asked)
        ],
    )
    key = [
        {"id": n, "left": names[q.left], "right": names[q.right], "image": q.image}
        for n, q in enumerate(asked)
    ]
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    for number, q in enumerate(asked):
        for side, run in (("left", q.left), ("right", q.right)):
            doors[run].write(folder / IMAGES / picture(number, side), to_pil(shown[run][q.image]))
    write_json(folder / KEY, {"format": FORMAT, "study": study, "runs": names, "questions": key})
    write_bytes(folder / PAGE, page.encode())
    return len(asked)


def read_votes(files: Sequence[Path], key: Path) -> tuple[list[str], list[Vote]]:
    """The names of the runs and all votes of several voters. Raises DataError in one line."""
    known = json_of(key, "the key of a study")
    try:
        sides = {int(q["id"]): (str(q["left"]), str(q["right"])) for q in known["questions"]}
        names, study = [str(name) for name in known["runs"]], str(known["study"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{key} is not the key of a study; name the folder that `--study` wrote") from None
    votes = []
    for file in files:
        for number, choice in choices_of(file, study, sides).items():
            left, right = sides[number]
            votes.append(Vote(left, right, {"left": left, "right": right, "same": None}[choice]))
    if not votes:
        raise DataError(f"{', '.join(map(str, files))}: no votes in it")
    return names, votes


def write_pairs(files: Sequence[Path], folder: Path, prompts: Sequence[str] = ()) -> tuple[Path, int]:
    """Write what voters preferred in the study of `folder` as a listing that `sfumato pack` reads.

    Each line has the chosen picture, the `rejected` one, and its caption: that of `prompts` in whose turn
    the picture was drawn, if any are given. Draws are left out. Returns the file and how many pairs it has;
    raises DataError in one line.
    """
    known = json_of(folder / KEY, "the key of a study")
    try:
        sides = {int(q["id"]): (str(q["left"]), str(q["right"])) for q in known["questions"]}
        images, study = {int(q["id"]): int(q["image"]) for q in known["questions"]}, str(known["study"])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{folder / KEY} does not say which pictures it shows; write the study again with this version"
        ) from None
    lines = []
    for file in files:
        for number, choice in choices_of(file, study, sides).items():
            if choice == "same":
                continue
            other = "right" if choice == "left" else "left"
            pair = {
                "file": f"{IMAGES}/{picture(number, choice)}",
                "rejected": f"{IMAGES}/{picture(number, other)}",
            }
            text = {"text": prompts[images[number] % len(prompts)]} if prompts else {}
            lines.append({**pair, **text, "key": f"{file.stem}-{number:06d}"})
    if not lines:
        raise DataError(f"{', '.join(map(str, files))}: no vote prefers a picture to another")
    place = folder / PAIRS
    write_bytes(place, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return place, len(lines)


def picture(question: int, side: str) -> str:
    """The file of a picture."""
    return f"{question:06d}-{side}.png"


def choices_of(file: Path, study: str, sides: Mapping[int, object]) -> dict[int, str]:
    """A voter's answers by question: left, right or same. Raises DataError in one line."""
    content = json_of(file, "a file of votes")
    if content.get("study") != study:
        raise DataError(f"{file} has votes of another study ({content.get('study')}) than the key ({study})")
    found: dict[int, str] = {}
    for entry in content.get("votes", []):
        try:
            number, choice = int(entry["id"]), str(entry["choice"])
        except (KeyError, TypeError, ValueError):
            number, choice = -1, ""
        if number not in sides or choice not in ("left", "right", "same"):
            raise DataError(
                f"{file}: vote {json.dumps(entry)[:80]} is invalid: a vote is an id of the study with left, "
                "right or same"
            )
        found[number] = choice  # the last answer to a question counts
    return found


def json_of(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file. Raises DataError in one line."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; wanted {what}") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not {what}: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not {what}: it holds a {type(content).__name__}")
    return content


def _images(run: EvaluatedRun, num: int) -> UInt8Array:
    images = run.images(num)
    if images is None:
        raise DataError(
            f"{run.name} kept no images: evaluate it with evaluate.preview={num}, and keep its folder"
        )
    return images


def _door(run: EvaluatedRun) -> Door:
    """As the run's recipe marks its pictures, but for the model's name: nobody is to know whose they are."""
    return Door(ProvenanceSettings.model_validate(run.recipe.get("provenance", {})))


def _uri(image_HWC: UInt8Array, door: Door) -> str:
    png = door.file(image_grid(image_HWC[None], smallest=256))
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
