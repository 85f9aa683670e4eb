"""`sfumato provenance detect`: looks for a mark in files, folders and packed data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sfumato.core.messages import ReadsMessages
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading.local_reader import read_all
from sfumato.errors import ConfigError
from sfumato.provenance import detection
from sfumato.provenance.detection import Found
from sfumato.provenance.watermarks import Detection, WatermarkConfig
from sfumato.runtime.commands.sample import device_of
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.targets import model_of
from sfumato.sampling.generator import Generator
from sfumato.sampling.message_reader import MessageReader
from sfumato.sampling.noise_reader import NoiseReader


def detect(place: str, settings: WatermarkConfig, display: Display) -> list[Found]:
    """What is found in a file, in all pictures below a folder, or in the images of a packed data set.

    Raises DataError: nothing there, a damaged set, or a single file that is no picture or too small.
    """
    if _packed(place):
        return list(detection.of_images(_of_set(place, display), settings))
    return detection.detect(Path(place), settings)


class Reader(Protocol):
    """Looks for a model's mark in some images at once."""

    block: int

    def read(self, images: Sequence[Any]) -> list[Detection]: ...


@dataclass(frozen=True, slots=True)
class Looked:
    """What was looked for."""

    kind: str
    message: str


def detect_by(
    place: str,
    run: str,
    *,
    message: str | None,
    labels: list[str] | None,
    prompts: list[str] | None,
    steps: int | None,
    refine: int,
    device: str,
    base: Path | None,
    trust: bool,
    root: Path,
    display: Display,
) -> tuple[list[Found], Looked]:
    """The same for the mark that a run's pictures have from the model itself: in the noise that they begin
    with, or a message that it was trained to read. Also returns what was looked for.

    `labels` or `prompts` are what the pictures were drawn for, one or several in turn, if that is known;
    `message` is that of a model that reads any.

    Raises ConfigError: a run without a mark, or whose noise cannot be found again.
    """
    with model_of(run, root=root, trust=trust) as found:
        display.line(found.about)
        model = Generator.load(found.model, device_of(device), trust=found.trusted, base=base)
    reader, looked = _reader(model, message, labels, prompts, steps, refine)
    if _packed(place):
        return list(_read(reader, _of_set(place, display))), looked
    files = detection.files_of(Path(place))
    display.stage("detect")
    there: dict[str, Found] = {}
    pictures = ((str(file), image) for file in files if (image := detection.opened(file)) is not None)
    for one in _read(reader, pictures):
        there[one.file] = one
        display.update(len(there), len(files))
    display.done(f"{len(files):,} pictures")
    return detection.checked(
        Path(place), [there.get(str(file)) or detection.unreadable(file) for file in files]
    ), looked


def _reader(
    model: Generator,
    message: str | None,
    labels: list[str] | None,
    prompts: list[str] | None,
    steps: int | None,
    refine: int,
) -> tuple[Reader, Looked]:
    if isinstance(model.family, ReadsMessages):
        if labels or prompts or steps:
            raise ConfigError("--label, --prompt, --steps: this model reads messages and inverts no sampler")
        reading = MessageReader(model, message)
        return reading, Looked(str(model.config.family), reading.message)
    settings = model.provenance.settings.noise
    if message is not None and settings is not None:
        raise ConfigError("--message: the run says its own; leave it out")
    source = model.takes.source(labels=labels, prompts=prompts) if labels or prompts else None
    noise = NoiseReader(model, source=source, steps=steps, refine=refine)
    assert settings is not None, "a NoiseReader has looked"
    return noise, Looked(settings.kind, settings.message)


def _read(reader: Reader, images: Iterator[tuple[str, Any]]) -> Iterator[Found]:
    """As they come, block by block."""
    while block := list(islice(images, reader.block)):
        detections = reader.read([image for _, image in block])
        yield from (Found(name, one) for (name, _), one in zip(block, detections, strict=True))


def _packed(place: str) -> bool:
    return not Path(place).is_file() and Manifest.exists(place)


def _of_set(place: str, display: Display) -> Iterator[tuple[str, Any]]:
    manifest = Manifest.load(place)
    display.stage("detect")
    row = 0
    for columns in read_all(place, 64, manifest=manifest):
        for image in columns["image"]:
            yield f"image {row}", image
            row += 1
        display.update(row, manifest.samples)
    display.done(f"{row:,} images")
