"""A folder of edited images: PNGs, a grid of pairs, and a JSON line for each that says what made it.

Blocks are written as they come, into a folder whose name says what was asked for; a repeated request resumes
there. The folder gets its own name when all is done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.core.drafts import folder_beside, writing
from sfumato.editing.edit import Edit, pairs
from sfumato.errors import ConfigError
from sfumato.provenance.door import refused
from sfumato.sampling.generator import Generator
from sfumato.sampling.grid import SMALLEST_TILE, image_grid, to_pil
from sfumato.sampling.output import GRID, file_name
from sfumato.sampling.pixels import Images

LINES = "edits.jsonl"
ANIMATION = "animation.webp"
FRAME_MS = 80
SHOWN = 32
"""Images in the grid, each beside its original."""


class Output:
    """The folder of one request."""

    def __init__(self, out: Path, edit: Edit, model: Generator, *, overwrite: bool) -> None:
        """Raises ConfigError if `out` holds other files, or edits that `overwrite` does not give up."""
        self._out, self._edit, self._model = out, edit, model
        _check_place(out, overwrite=overwrite)
        model.door.check(model.data.height, model.data.width, drawn=False)
        if model.door.asks:
            model.door.ask(edit.facts(range(len(edit.images))))
        asked = [edit.told(model, number) for number in range(len(edit.images))]
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
        self._draft = out.parent / f".{out.name}.{digest[:12]}"
        self._draft.mkdir(parents=True, exist_ok=True)

    def missing(self) -> list[int]:
        """The blocks that are still to be made."""
        return [block for block in range(self._edit.blocks(self._model)) if not self._lines(block).is_file()]

    def write(self, block: int, images: Images) -> None:
        """The images of a block; its lines come last, so that a block is complete or missing."""
        first, lines = block * self._edit.operation.at_once(self._model), []
        door = self._model.door
        facts = self._edit.facts(range(first, first + len(images)))
        images, applied = door.pixels(images, facts, drawn=False)
        for number, (image, fact, marks) in enumerate(zip(images, facts, applied, strict=True), start=first):
            line: dict[str, Any] = {"file": file_name(number), **self._edit.told(self._model, number)}
            if refused(marks):
                line["file"] = None
            else:
                marks |= door.write(self._draft / file_name(number), to_pil(image), fact)
            if not door.open:
                line["provenance"] = marks
            lines.append(json.dumps(line, ensure_ascii=False, default=str))
        part = self._lines(block).with_suffix(".part")
        with writing(part):
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        part.rename(self._lines(block))

    def finish(self) -> Path:
        """Put the lines together, draw the grid, and give the folder its name."""
        blocks = range(self._edit.blocks(self._model))
        text = "".join(self._lines(block).read_text("utf-8") for block in blocks)
        with writing(self._out / LINES):
            (self._draft / LINES).write_text(text, encoding="utf-8")
        for block in blocks:
            self._lines(block).unlink()
        few = min(SHOWN, len(self._edit.images))
        images = np.stack([self._left(number) for number in range(few)])
        shown = image_grid(pairs(self._edit.images, {0: images}, few))
        self._model.door.write(self._draft / GRID, self._model.door.sheet(shown))
        if self._out.exists():
            shutil.rmtree(self._out)
        self._draft.rename(self._out)
        return self._out

    def _left(self, number: int) -> Images:
        """The pixels of an image as it left, [H, W, C]; grey for one that the model's filter refused."""
        file = self._draft / file_name(number)
        if file.is_file():
            return _pixels(file)
        data = self._model.data
        return np.full((data.height, data.width, data.channels), 128, np.uint8)

    def _lines(self, block: int) -> Path:
        return self._draft / f"block-{block:06d}.jsonl"


def write_rows(
    out: Path,
    model: Generator,
    rows: Iterable[Images],
    about: dict[str, Any],
    *,
    overwrite: bool,
    said: Callable[[int, int], dict[str, Any]] = lambda row, column: {},
) -> Path:
    """Rows of images that an operation drew: PNGs, a grid with a line for each row, an animation of all.

    `said` says what the image in a row and a column shows.

    Raises ConfigError as `Output` does.
    """
    _check_place(out, overwrite=overwrite)
    model.door.check(model.data.height, model.data.width, drawn=False)
    draft = folder_beside(out)
    try:
        found = list(rows)
        flat, applied = model.door.pixels(np.concatenate(found), drawn=False)
        with writing(out / LINES), (draft / LINES).open("w", encoding="utf-8") as file:
            for number, (image, marks) in enumerate(zip(flat, applied, strict=True)):
                shown = said(*divmod(number, len(found[0])))
                line: dict[str, Any] = {"file": file_name(number), "index": number, **shown, **about}
                if refused(marks):
                    line["file"] = None
                else:
                    marks |= model.door.write(draft / file_name(number), to_pil(image))
                line |= {} if model.door.open else {"provenance": marks}
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        model.door.write(draft / GRID, model.door.sheet(image_grid(flat, columns=len(found[0]))))
        factor = max(1, -(-SMALLEST_TILE // min(flat.shape[1:3])))
        frames = [to_pil(image.repeat(factor, axis=0).repeat(factor, axis=1)) for image in flat]
        model.door.animation(draft / ANIMATION, frames, FRAME_MS)
        if out.exists():
            shutil.rmtree(out)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def ours(names: Iterable[str]) -> bool:
    """Whether a folder with these entries is one of edits."""
    return all(
        name in (GRID, LINES, ANIMATION) or (name.endswith(".png") and name[:-4].isdigit()) for name in names
    )


def _pixels(file: Path) -> Images:
    with Image.open(file) as image:
        found = np.asarray(image)
    return found if found.ndim == 3 else found[..., None]


def _check_place(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; name a folder")
    held = sorted(entry.name for entry in out.iterdir())
    if held and not overwrite:
        raise ConfigError(
            f"--out {out}: holds {len(held)} entries already; choose another or pass --overwrite"
        )
    if not ours(held):
        raise ConfigError(f"--out {out}: holds other files than edits, which would be lost; choose another")
