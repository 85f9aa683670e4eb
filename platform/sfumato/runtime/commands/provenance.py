"""`sfumato provenance detect`: looks for a watermark in files, folders and packed data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfumato.data.format.manifest import Manifest
from sfumato.data.reading.local_reader import read_all
from sfumato.provenance import detection
from sfumato.provenance.detection import Found
from sfumato.provenance.watermarks import WatermarkConfig
from sfumato.runtime.runs.display import Display


def detect(place: str, settings: WatermarkConfig, display: Display) -> list[Found]:
    """What is found in a file, in all pictures below a folder, or in the images of a packed data set.

    Raises DataError: nothing there, a damaged set, or a single file that is no picture or too small.
    """
    if not Path(place).is_file() and Manifest.exists(place):
        manifest = Manifest.load(place)
        images = _of_set(place, manifest, display)
        return list(detection.of_images(images, settings))
    return detection.detect(Path(place), settings)


def _of_set(place: str, manifest: Manifest, display: Display) -> Iterator[tuple[str, Any]]:
    display.stage("detect")
    row = 0
    for columns in read_all(place, 64, manifest=manifest):
        for image in columns["image"]:
            yield f"image {row}", image
            row += 1
        display.update(row, manifest.samples)
    display.done(f"{row:,} images")
