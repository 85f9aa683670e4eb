"""`sfumato pack`: packs the source that the user names into a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sfumato.core.validation import explain
from sfumato.data.format.faults import OnError
from sfumato.data.format.images import MAX_PIXELS
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing import pack as packs
from sfumato.data.packing.pack import PackReport
from sfumato.data.packing.recognition import kind_of, place_of
from sfumato.data.packing.source import SourceConfig
from sfumato.data.packing.sources import SOURCES
from sfumato.data.storage.filesystems import below
from sfumato.errors import ConfigError
from sfumato.runtime.cluster.pool import Pool
from sfumato.runtime.runs.display import Display

_LISTED = 20


def pack(
    source: str,
    dest: str,
    *,
    options: Mapping[str, Any],
    on_error: OnError,
    max_errors: int,
    overwrite: bool,
    display: Display,
    max_pixels: int = MAX_PIXELS,
    shard_size: int | None = None,
    workers: int | None = 1,
) -> dict[str, Any]:
    """Pack `digits` or the source at a path; returns the outcome as plain data."""
    settings = _source(source, options)
    with Pool(workers) as pool:
        report = packs.pack(
            settings,
            dest,
            overwrite=overwrite,
            on_error=on_error,
            max_errors=max_errors,
            max_pixels=max_pixels,
            shard_size=shard_size,
            progress=display.update,
            stage=display.stage,
            note=display.note,
            run=pool,
        )
    _tell(report, display)
    whole = report.manifest
    return {
        "folder": dest,
        "samples": sum(manifest.samples for manifest in report.manifests.values()),
        "shards": sum(len(manifest.shards) for manifest in report.manifests.values()),
        "bytes": sum(manifest.bytes for manifest in report.manifests.values()),
        "image": [whole.image.channels, whole.image.height, whole.image.width],
        "classes": list(whole.classes),
        "digest": whole.digest,
        "splits": {split: _split(dest, split, m) for split, m in report.manifests.items() if split},
        "captions": sum(manifest.captions for manifest in report.manifests.values()),
        "duplicates": [{"left_out": a, "kept": b, "bits": bits} for a, b, bits in report.duplicates],
        "filtered": [{"left_out": key, "score": score} for key, score in report.filtered],
        "kept_shards": report.kept,
        "skipped": [str(fault) for fault in report.skipped],
    }


def _tell(report: PackReport, display: Display) -> None:
    for fault in report.skipped[:_LISTED]:
        display.note(f"skipped {fault}")
    if len(report.skipped) > _LISTED:
        display.note(f"and {len(report.skipped) - _LISTED:,} more (--json lists all)")
    for left_out, kept, bits in report.duplicates[:_LISTED]:
        display.note(f"left out {left_out}: looks like {kept} ({bits} bits differ)")
    if len(report.duplicates) > _LISTED:
        display.note(f"and {len(report.duplicates) - _LISTED:,} more near duplicates (--json lists all)")
    for key, score in report.filtered[:_LISTED]:
        display.note(f"left out {key}: the filter scores it {score:.2f}")
    if len(report.filtered) > _LISTED:
        display.note(f"and {len(report.filtered) - _LISTED:,} more that it finds (--json lists all)")
    if report.kept:
        display.note(f"{report.kept} shards were finished before")
    for split, manifest in report.manifests.items():
        into = f" in {split}" if split else ""
        display.done(f"{manifest.samples:,} images, {len(manifest.shards)} shards{into}")


def _split(dest: str, split: str, manifest: Manifest) -> dict[str, Any]:
    return {"folder": below(dest, split), "samples": manifest.samples, "digest": manifest.digest}


def _source(source: str, options: Mapping[str, Any]) -> SourceConfig:
    kind = str(options.get("kind") or kind_of(source))
    try:
        settings = SOURCES.find(kind)
    except ConfigError as error:
        raise ConfigError(*(f"kind: {line}" for line in error.problems)) from None
    try:
        return settings.model_validate({**place_of(kind, source), **options, "kind": kind})
    except ValidationError as error:
        raise ConfigError(*explain(error, settings)) from None
