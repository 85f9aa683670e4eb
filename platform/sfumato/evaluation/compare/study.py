"""A blind study: a page that asks which of two images is better, and the key that names their runs.

Both images of a question have the same seed and class, if the runs were evaluated alike. The seed determines
which run is on which side, and the order of the questions. The page names no run; the author of the study
keeps the key. A voter's browser keeps the answers and saves them as a file; nothing is sent anywhere.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Sequence
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
from sfumato.sampling.grid import image_grid

PAGE = "study.html"
KEY = "key.json"
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
    key = [{"id": n, "left": names[q.left], "right": names[q.right]} for n, q in enumerate(asked)]
    write_json(folder / KEY, {"format": FORMAT, "study": study, "runs": names, "questions": key})
    write_bytes(folder / PAGE, page.encode())
    return len(asked)


def read_votes(files: Sequence[Path], key: Path) -> tuple[list[str], list[Vote]]:
    """The names of the runs and all votes of several voters. Raises DataError in one line."""
    known = _json(key, "the key of a study")
    try:
        sides = {int(q["id"]): (str(q["left"]), str(q["right"])) for q in known["questions"]}
        names, study = [str(name) for name in known["runs"]], str(known["study"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{key} is not the key of a study; name the folder that `--study` wrote") from None
    votes = [vote for file in files for vote in _votes_of(file, study, sides)]
    if not votes:
        raise DataError(f"{', '.join(map(str, files))}: no votes in it")
    return names, votes


def _votes_of(file: Path, study: str, sides: dict[int, tuple[str, str]]) -> list[Vote]:
    content = _json(file, "a file of votes")
    if content.get("study") != study:
        raise DataError(f"{file} has votes of another study ({content.get('study')}) than the key ({study})")
    found: dict[int, Vote] = {}
    for entry in content.get("votes", []):
        try:
            number, choice = int(entry["id"]), entry["choice"]
            left, right = sides[number]
            winner = {"left": left, "right": right, "same": None}[choice]
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{file}: vote {json.dumps(entry)[:80]} is invalid: a vote is an id of the study with left, "
                "right or same"
            ) from None
        found[number] = Vote(left, right, winner)  # the last answer to a question counts
    return list(found.values())


def _json(path: Path, what: str) -> dict[str, Any]:
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
