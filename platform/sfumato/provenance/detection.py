"""Looks for a watermark in pictures of any origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from sfumato.core.finding import built_in_only
from sfumato.core.validation import explain
from sfumato.errors import ConfigError, DataError
from sfumato.provenance.stored import read_provenance
from sfumato.provenance.watermarks import LENGTH, WATERMARKS, Detection, Images, Watermark, WatermarkConfig

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Found:
    """One picture; `wrong` says why nothing could be looked for."""

    file: str
    detection: Detection | None = None
    wrong: str = ""

    def marked(self, level: float) -> bool:
        """Whether it has the mark at this level."""
        return self.detection is not None and self.detection.p_value <= level


def scheme(
    kind: str,
    message: str | None = None,
    model: Path | None = None,
    settings: Mapping[str, str] | None = None,
    *,
    trust: bool = False,
) -> WatermarkConfig:
    """By its name, message and further settings, or as a model's pictures are marked. Raises ConfigError."""
    if model is not None:
        found = read_provenance(model, trust=trust).settings.watermark
        if found is None:
            raise ConfigError(f"--model {model}: its pictures have no watermark")
        return found
    with built_in_only(not trust):
        try:
            cls = WATERMARKS.find(kind)
        except ConfigError as error:
            raise ConfigError(*(f"--scheme: {line}" for line in error.problems)) from None
    given = {**(settings or {}), **({} if message is None else {"message": message})}
    try:
        found_scheme: WatermarkConfig = cls.model_validate(given)
    except ValidationError as error:
        lines = explain(error, cls)
        named = (f"--{line}" if line.startswith("message") else f"--set {line}" for line in lines)
        raise ConfigError(*named) from None
    return found_scheme


def of_images(images: Iterable[tuple[str, Images]], settings: WatermarkConfig) -> Iterator[Found]:
    """Of images [H, W, C] with their names, as they come."""
    watermark = settings.build()
    for name, image in images:
        yield _judged(name, image, settings, watermark)


def detect(place: Path, settings: WatermarkConfig) -> list[Found]:
    """Of a file, or of all pictures below a folder, by name.

    Raises DataError: nothing there, or a single file that is no picture or too small.
    """
    files = files_of(place)
    watermark = settings.build()
    found = [_one(file, settings, watermark) for file in files]
    return checked(place, found)


def files_of(place: Path) -> list[Path]:
    """The file, or all pictures below a folder, by name. Raises DataError where there is nothing."""
    files = [place] if place.is_file() else sorted(_below(place))
    if not files:
        raise DataError(f"{place}: " + ("no picture in it" if place.is_dir() else "no such file or folder"))
    return files


def checked(place: Path, found: list[Found]) -> list[Found]:
    """The outcomes. Raises DataError for a single file in which nothing could be looked for."""
    if place.is_file() and found[0].wrong:
        raise DataError(f"{place}: {found[0].wrong}")
    return found


def opened(file: Path) -> Images | None:
    """The pixels of a picture [H, W, 1 or 3]; None if it is none that can be read."""
    try:
        with Image.open(file) as picture:
            mode = "L" if picture.mode in ("1", "L", "I;16") else "RGB"
            image: Images = np.asarray(picture.convert(mode))
    except (OSError, Image.DecompressionBombError):
        return None
    return image if image.ndim == 3 else image[..., None]


def unreadable(file: Path) -> Found:
    """The outcome of a file that is no picture."""
    return Found(str(file), wrong="no picture that can be read")


def _below(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())


def _one(file: Path, settings: WatermarkConfig, watermark: Watermark) -> Found:
    image = opened(file)
    return unreadable(file) if image is None else _judged(str(file), image, settings, watermark)


def _judged(name: str, image_HWC: Images, settings: WatermarkConfig, watermark: Watermark) -> Found:
    height, width = image_HWC.shape[:2]
    if min(height, width) < settings.least:
        wrong = f"{height}x{width} pixels; {settings.kind} needs at least {settings.least} a side"
        return Found(name, wrong=wrong)
    return Found(name, watermark.detect(image_HWC, settings.bits))


def content(found: Sequence[Found], settings: Any, level: float) -> dict[str, Any]:
    """The outcome as plain data; `settings` are those of a watermark, or of a mark in noise."""
    files = [
        {"file": one.file, "marked": one.marked(level)}
        | (
            {"wrong": one.wrong}
            if one.detection is None
            else {"matched": one.detection.matched, "p_value": one.detection.p_value}
        )
        for one in found
    ]
    marked = sum(one.marked(level) for one in found)
    about = {"scheme": settings.kind, "message": settings.message, "bits": LENGTH, "level": level}
    return {**about, "pictures": len(found), "marked": marked, "files": files}


def text(found: Sequence[Found], level: float) -> str:
    """The outcome for a person: every picture, or the first and how many."""
    lines = [_line(one, level) for one in found[:_LISTED]]
    if len(found) > _LISTED:
        lines.append(f"and {len(found) - _LISTED:,} more (--json lists all)")
    if len(found) > 1:
        marked = sum(one.marked(level) for one in found)
        lines.append(f"{marked:,} of {len(found):,} pictures have the mark at p <= {level:g}")
    return "\n".join(lines)


def _line(one: Found, level: float) -> str:
    if one.detection is None:
        return f"{one.file}: {one.wrong}"
    said = "marked" if one.marked(level) else "no mark found"
    matched = one.detection.matched
    bits = "" if matched is None else f"{matched} of {LENGTH} bits agree, "
    return f"{one.file}: {said}, {bits}p = {one.detection.p_value:.2g}"
