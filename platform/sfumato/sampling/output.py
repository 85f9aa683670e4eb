"""A folder of samples: pictures, a grid, and one JSON line per image that records how it was made."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sfumato import __version__
from sfumato.core.conditions import LABEL, Source, told
from sfumato.core.drafts import folder_beside, writing
from sfumato.core.rng import SampleRng
from sfumato.errors import ConfigError
from sfumato.provenance.door import Door, refused
from sfumato.provenance.facts import Facts
from sfumato.provenance.formats import SUFFIXES, Format
from sfumato.sampling.conditions import Labels
from sfumato.sampling.generator import Generator
from sfumato.sampling.grid import image_grid, labelled_grid, to_pil
from sfumato.sampling.leaving import facts_of
from sfumato.sampling.pixels import Images
from sfumato.sampling.sweep import Sweep, interleaved

GRID = "grid.png"
LINES = "samples.jsonl"
GRID_IMAGES = 100
OURS = re.compile(rf"\d{{6,}}\.(png|jpg|webp)|{re.escape(GRID)}|{re.escape(LINES)}")


def write_samples(
    out: str | os.PathLike[str],
    generator: Generator,
    num: int,
    *,
    seed: int = 0,
    labels: Labels | None = None,
    conditions: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    sweep: Sweep | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    kind: Format = "png",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw `num` samples (as `Generator.sample` does) into the folder `out`, and return it.

    It gets `000000.png` and so on (`kind` is their format), `grid.png` of the first 100 and `samples.jsonl`.
    With a `sweep`, each of the `num` samples is drawn with every value of an option, from the same noise, and
    the grid has a row for each sample and a column for each value. All leave by the model's door
    (`Generator.door`), and the lines say what it did. The folder is written under a hidden name and renamed
    at the end: an interrupted call leaves nothing.

    Raises:
        ConfigError: `out` is not empty and `overwrite` is not set, or it holds other files than samples;
            or the model cannot take the conditions or options; or a mark that the model requires cannot be
            set. All before the first image is drawn.
    """
    target = Path(out)
    _check_place(target, overwrite=overwrite)
    generator.door.check(generator.data.height, generator.data.width)
    source = generator.takes.source(labels=labels, conditions=conditions)
    if generator.door.asks:
        generator.door.ask(facts_of(source, range(num), seed))
    variants = sweep.variants(options or {}) if sweep else [options or {}]
    drawers = [generator.with_options(generator.options(v)) for v in variants] if sweep else [generator]
    drawn = interleaved(
        [
            drawer.batches(num, seed=seed, conditions=source, options=variant, batch_size=batch_size)
            for drawer, variant in zip(drawers, variants, strict=True)
        ]
    )
    chosen = [generator.options(variant).model_dump() for variant in variants]
    lines = _lines(generator, num, seed, source, chosen, SUFFIXES[kind])
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = folder_beside(target)
    try:
        with writing(draft):
            shown = _write(
                draft, generator.door, drawn, source, seed, lines, num * len(variants), kind, progress
            )
            generator.door.write(draft / GRID, generator.door.sheet(_grid(shown, source, sweep)))
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def file_name(index: int, suffix: str = ".png") -> str:
    """The file of image `index`."""
    return f"{index:06d}{suffix}"


def _write(
    folder: Path,
    door: Door,
    drawn: Iterator[Images],
    source: Source,
    seed: int,
    lines: Iterator[dict[str, Any]],
    num: int,
    kind: Format,
    progress: Callable[[int, int], None] | None,
) -> Images:
    """Writes all images; returns the first, as they left."""
    first: list[Images] = []
    done = 0
    with (folder / LINES).open("w", encoding="utf-8") as file:
        for images in drawn:
            about = list(islice(lines, len(images)))
            facts = [Facts()] * len(about)
            if not door.open:
                facts = facts_of(source, [line["index"] for line in about], seed)
            images, applied = door.pixels(images, facts)
            first.append(images[: max(0, GRID_IMAGES - done)])
            for image, line, fact, marks in zip(images, about, facts, applied, strict=True):
                if refused(marks):
                    line["file"] = None
                else:
                    marks |= door.write(folder / line["file"], to_pil(image), fact, kind)
                if not door.open:
                    line["provenance"] = marks
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            done += len(images)
            if progress is not None:
                progress(done, num)
    return np.concatenate(first)


def _grid(images: Images, source: Source, sweep: Sweep | None) -> Image.Image:
    """Of the first images; with a sweep, of the samples that are complete among them."""
    if sweep is None:
        return image_grid(images)
    rows = max(1, len(images) // len(sweep.values))
    names = [_title(source, row) for row in range(rows)]
    return labelled_grid(images[: rows * len(sweep.values)], names, sweep.titles)


def _title(source: Source, row: int) -> str:
    """A sample's text, else what other condition it has, else its number."""
    conditions = told(source, row)
    text = next((value for name, value in conditions.items() if source[name].kind == "text"), None)
    label = conditions.get(LABEL.name)
    return text or (f"sample {row}" if label is None else f"class {label}")


def _lines(
    generator: Generator,
    num: int,
    seed: int,
    source: Source,
    variants: Sequence[dict[str, Any]],
    suffix: str,
) -> Iterator[dict[str, Any]]:
    """How each image was made: enough to draw it again. `variants` are options that each is drawn with."""
    for place, (index, options) in enumerate(product(range(num), variants)):
        conditions = told(source, index)
        label = conditions.pop(LABEL.name, None)
        if isinstance(label, dict):  # from a data set: the number is more useful than the place
            rows = source[LABEL.name]
            (number,) = rows.read([index % len(rows)])
            label = int(number) if isinstance(number, Tensor) else None
        yield {
            "file": file_name(place, suffix),
            "index": index,
            "seed": seed,
            "row_seed": SampleRng(seed, [index]).seeds[0],
            "label": label,
            "class": None if label is None else generator.data.classes[label],
            "conditions": conditions,
            "options": options,
            "model": generator.name,
            "model_digest": generator.digest,
            "images_seen": generator.images,
            "sfumato": __version__,
        }


def _check_place(target: Path, *, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"--out {target}: is a file; name a folder")
    held = sorted(entry.name for entry in target.iterdir())
    if held and not overwrite:
        raise ConfigError(
            f"--out {target}: holds {len(held)} entries already; choose another or pass --overwrite"
        )
    if foreign := [name for name in held if not OURS.fullmatch(name)]:
        raise ConfigError(
            f"--out {target}: holds {foreign[0]!r}, which is not a sample and would be lost; choose another"
        )
