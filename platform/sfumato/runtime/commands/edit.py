"""Editing images, or a whole data set, with a trained model: in this process, or on Ray actors."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfumato.core.allocator import keep_freed_memory
from sfumato.core.conditions import SMALL, Condition, Rows
from sfumato.core.validation import explain
from sfumato.data.format.manifest import FILE as MANIFEST
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.editing.edit import Edit, Editor, about_of, options_for
from sfumato.editing.operations import OPERATIONS, Operation
from sfumato.editing.output import Output, write_rows
from sfumato.errors import ConfigError
from sfumato.evaluation.blocks.ray_pool import workers_for
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.commands.sample import device_of
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.pretrained import resolved_options
from sfumato.runtime.runs.targets import model_of
from sfumato.sampling.condition_files import ImageFiles
from sfumato.sampling.conditions import Asked, Takes
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import Images


@dataclass(frozen=True, slots=True)
class Actors:
    """How many Ray actors edit; 0 is this process."""

    actors: int = 0
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    start_timeout: float = 300.0


def edit(
    run: str,
    images: str | None,
    out: Path,
    *,
    by: str | None,
    settings: Mapping[str, Any],
    mask: Path | None,
    asked: Asked,
    options: Mapping[str, Any],
    seed: int,
    actors: Actors,
    overwrite: bool,
    device: str,
    base: Path | None = None,
    trust: bool = False,
    root: Path,
    display: Display,
) -> Path:
    """Edit an image, a folder of images or a packed data set into `out`; returns the folder.

    `by` is the operation with its `settings`; without it, the one that the model and the mask call for. The
    same request gives the same bytes for any number of actors, and resumes where it was interrupted.

    Raises ConfigError with everything that makes it impossible, before the first image.
    """
    place = str(device_of(device)) if actors.actors == 0 else device
    keep_freed_memory(of_any_size=True)
    with model_of(run, root=root, trust=trust) as found:
        display.line(found.about)
        model = Generator.load(found.model, "cpu", trust=found.trusted, base=base)
        if options:
            options = resolved_options(found.model, options, root, trust=found.trusted)
        operation = _operation(by, settings, model, masked=mask is not None)
        if not operation.reads:
            if str(device_of(device)) != "cpu":
                model = Generator.load(found.model, device_of(device), trust=found.trusted, base=base)
            return _drawn(operation, model, out, images, asked, options, seed, display, overwrite=overwrite)
        if images is None:
            raise ConfigError(f"IMAGE: {operation.kind} edits images; name a file, a folder or a data set")
        rows = _images(images, model)
        request = Edit(
            images=rows,
            masks=None if mask is None else ImageFiles.at("--mask", [str(mask)]),
            source=_source(images, rows, asked, model, operation),
            operation=operation,
            options=options_for(operation, model, options),
            seed=seed,
        )
        request.check(model)
        editor = Editor(found.model.resolve(), request, place, base, found.trusted, root.resolve())
        output = Output(out, request, model, overwrite=overwrite)
        _run(editor, output, model, actors, display)
        folder = output.finish()
        display.done(f"{len(rows):,} images")
    return folder


def _drawn(
    operation: Operation,
    model: Generator,
    out: Path,
    images: str | None,
    asked: Asked,
    changes: Mapping[str, Any],
    seed: int,
    display: Display,
    *,
    overwrite: bool,
) -> Path:
    """What an operation draws without images, in this process."""
    options = options_for(operation, model, changes)
    found = operation.problems(model, options)
    if images is not None:
        found.append(f"IMAGE: {operation.kind} reads none; leave {images!r} out")
    if found:
        raise ConfigError(*found)
    source = model.takes.source(conditions=asked.source(model.takes))
    about = about_of(model, operation, options, seed)
    display.stage("edit")

    def rows() -> Iterator[Images]:
        for done, row in enumerate(operation.drawn(model, source, options, seed), start=1):
            yield row
            display.update(done, operation.count or None)

    said = partial(operation.said, source)
    folder = write_rows(out, model, rows(), about, overwrite=overwrite, said=said)
    display.done(f"{operation.count:,} rows of images" if operation.count else "drawn")
    return folder


def _run(editor: Editor, output: Output, model: Generator, actors: Actors, display: Display) -> None:
    waiting = output.missing()
    total, rows = editor.edit.blocks(model), editor.edit.operation.at_once(model)
    display.stage("edit")
    done = total - len(waiting)
    if done:
        display.note(f"{done:,} of {total:,} blocks are there already; the rest follows")
    with actors_cluster(actors), workers_for(actors) as workers:
        for block, images in workers.run(editor, waiting):
            output.write(block, images)
            done += 1
            display.update(min(done * rows, len(editor.edit.images)), len(editor.edit.images))


def _operation(by: str | None, settings: Mapping[str, Any], model: Generator, *, masked: bool) -> Operation:
    """The operation with its settings. Raises ConfigError for an unknown one, or settings that it lacks."""
    pictures = [condition for condition in model.conditions if condition.kind == "image"]
    usual = "inpaint" if masked else "translate" if len(pictures) == 1 else "img2img"
    if not masked and [condition.name for condition in pictures] == [SMALL]:
        usual = "upscale"
    kind = OPERATIONS.find(by or usual)
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError(*(f"--by {by or usual}: {line}" for line in explain(error, kind))) from None


def _images(place: str, model: Generator) -> Rows:
    """The images of a file, a folder, or a packed data set."""
    if (Path(place) / MANIFEST).is_file() or "://" in place:
        column = Condition("image", "image", "image", shape=model.data.shape)
        return rows_of_data(place, [column])["image"]
    return ImageFiles.at("IMAGE", [place])


def _source(
    place: str, rows: Rows, asked: Asked, model: Generator, operation: Operation
) -> Mapping[str, Rows]:
    """The conditions: those given, then those of the data set, then the picture itself. What the operation
    gives the model is left to it.

    Raises ConfigError for classes that nobody names, since samples would take them in turn.
    """
    given = operation.takes(model.takes.conditions)
    takes = Takes(given, model.takes.data, model.takes.family)
    packed = (Path(place) / MANIFEST).is_file() or "://" in place
    pictures = [condition for condition in given if condition.kind == "image"]
    named = Takes([each for each in takes.conditions if each.kind != "image"], takes.data, takes.family)
    found = dict(replace(asked, data=place if packed and named.conditions else None).source(named))
    for condition in takes.conditions:
        if condition.kind == "label" and condition.name not in found:
            raise ConfigError("--label: the model has classes; say which one the image is to have")
    if len(pictures) == 1:
        found[pictures[0].name] = rows
    return takes.source(conditions=found)


@contextlib.contextmanager
def actors_cluster(actors: Actors) -> Iterator[None]:
    """The Ray cluster of the actors; nothing where this process does their work."""
    if actors.actors == 0:
        yield
        return
    cpus = max(1, round(actors.actors * actors.cpus_per_actor))
    with (
        tempfile.TemporaryDirectory(prefix="sfumato-") as logs,
        ray_cluster.cluster(cpus, Path(logs), gpus=actors.actors * actors.gpus_per_actor),
    ):
        yield
