"""`sfumato pack`: from what the user names to a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from sfumato.data import pack as packs
from sfumato.data.config import SourceSettings
from sfumato.data.faults import OnError
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
        progress=lambda done, total: display.update(done, total),
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
    if source == "digits":
        content = {"kind": "digits"}
    elif source.endswith(".npz"):
        content = {"kind": "npz", "path": source}
    else:
        content = {"kind": "folder", "path": source}
    kinds = {kind.model_fields["kind"].default: kind for kind in get_args(SourceSettings)}
    try:
        return kinds[content["kind"]].model_validate({**content, **options})
    except ValidationError as error:
        raise ConfigError(*explain(error, kinds[content["kind"]])) from None
