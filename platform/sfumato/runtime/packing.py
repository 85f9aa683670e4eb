"""`sfumato pack`: from what the user names to a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfumato.data import pack as packs
from sfumato.data.faults import OnError
from sfumato.data.sources import SourceSettings, source_named
from sfumato.errors import ConfigError
from sfumato.recipe import explain
from sfumato.runtime.display import Display


def pack(
    source: str,
    dest: Path,
    *,
    options: Mapping[str, Any],
    on_error: OnError,
    max_errors: int,
    overwrite: bool,
    display: Display,
) -> dict[str, Any]:
    """Pack `digits`, a folder or an .npz file; what came of it, as plain data."""
    settings = _source(source, options)
    display.stage("pack")
    report = packs.pack(
        settings,
        dest,
        overwrite=overwrite,
        on_error=on_error,
        max_errors=max_errors,
        progress=display.update,
    )
    for fault in report.skipped:
        display.note(f"skipped {fault}")
    manifest = report.manifest
    display.done(f"{manifest.samples:,} images, {len(manifest.shards)} shards")
    return {
        "folder": str(dest),
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "image": [manifest.image.channels, manifest.image.height, manifest.image.width],
        "classes": list(manifest.classes),
        "digest": manifest.digest,
        "skipped": [str(fault) for fault in report.skipped],
    }


def _source(source: str, options: Mapping[str, Any]) -> SourceSettings:
    settings = source_named(source)
    try:
        return type(settings).model_validate({**settings.model_dump(), **options})
    except ValidationError as error:
        raise ConfigError(*explain(error, type(settings))) from None
