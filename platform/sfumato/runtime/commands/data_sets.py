"""`sfumato data index | inspect | verify`: their work, with results as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfumato.core.validation import explain
from sfumato.data.format.faults import ON_COMMAND_LINE, FaultLog, OnError
from sfumato.data.format.images import MAX_PIXELS
from sfumato.data.format.index import load
from sfumato.data.format.samples import PICKLES, Fields
from sfumato.data.inspection import contact_sheet, described, inspect
from sfumato.data.order import class_mixing
from sfumato.data.packing.index_existing import IndexOptions, make_index
from sfumato.data.tracing import Query, find
from sfumato.data.verification import check
from sfumato.errors import ConfigError, DataError
from sfumato.runtime.cluster.pool import Pool
from sfumato.runtime.commands.pack import tell_opted_out
from sfumato.runtime.runs.display import Display

_LISTED = 50


def index(
    folder: str,
    *,
    dest: str | None,
    shards: str,
    fields: Mapping[str, Any],
    options: Mapping[str, Any],
    on_error: OnError,
    max_errors: int,
    overwrite: bool,
    workers: int | None,
    display: Display,
) -> dict[str, Any]:
    """Manifest and indexes for an existing WebDataset."""
    display.stage("index")
    with Pool(workers) as pool:
        report = make_index(
            folder,
            IndexOptions(shards=shards, fields=_fields(fields), **options),
            FaultLog(on_error, max_errors, ON_COMMAND_LINE),
            max_pixels=MAX_PIXELS,
            overwrite=overwrite,
            dest=dest,
            run=pool,
            progress=display.update,
        )
    manifest = report.manifest
    for fault in report.skipped[:_LISTED]:
        display.note(f"left out {fault}")
    tell_opted_out(report.opted_out, display)
    for note in report.notes:
        display.note(note)
    for extension, count in report.ignored.items():
        pickled = extension.rpartition(".")[2] in PICKLES
        why = "never read, as unpickling runs code" if pickled else "not used"
        display.note(f"{count:,} members .{extension}: {why}")
    labels = [part.labels for part in load(dest or folder, manifest)]
    unmixed = class_mixing.warning(labels, len(manifest.classes))
    if unmixed is not None:
        display.note(unmixed)
    display.done(f"{manifest.samples:,} images, {len(manifest.shards)} shards")
    return {
        "folder": dest or folder,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "image": [manifest.image.channels, manifest.image.height, manifest.image.width],
        "classes": list(manifest.classes),
        "captions": manifest.captions,
        "columns": described(manifest.columns),
        "digest": manifest.digest,
        "warnings": [] if unmixed is None else [unmixed],
        "ignored": report.ignored,
        "opted_out": [{"left_out": key, "reason": reason} for key, reason in report.opted_out],
        "licences": dict(manifest.licences),
        "skipped": [str(fault) for fault in report.skipped],
    }


def trace(
    image: Path, places: Sequence[str], *, bits: int, workers: int | None, display: Display
) -> dict[str, Any]:
    """Where an image or near copies of it are among data sets, and its entries for opt-out lists."""
    query = Query.of(image)
    found: list[dict[str, Any]] = []
    looked = 0
    for place in places:
        display.stage(f"trace {place}")
        with Pool(workers) as pool:
            matches, samples = find(query, place, bits=bits, run=pool, progress=display.update)
        looked += samples
        found += [match.told(place) for match in matches]
        display.done(f"{len(matches):,} of {samples:,} images")
    entries = [f"sha256 {query.sha256}", f"phash {query.phash}"]
    return {"image": str(image), "entries": entries, "looked_at": looked, "found": found}


def trace_text(report: Mapping[str, Any]) -> str:
    """The entries of the image, then a line for each match, the nearest first."""
    lines = list(report["entries"])
    for match in report["found"]:
        exact = "the same pixels" if match["same_pixels"] else f"{match['bits']} bits differ"
        how = f" ({match['as']})" if match["as"] != "whole" else ""
        lines.append(
            f"{match['data']}: {match['key']} in {match['shard']}: {exact}, colours differ by "
            f"{match['difference']:.1f}{how}"
        )
    if report["looked_at"] and not report["found"]:
        lines.append(f"not among {report['looked_at']:,} images")
    return "\n".join(lines)


def _fields(given: Mapping[str, Any]) -> Fields:
    try:
        return Fields.model_validate(given)
    except ValidationError as error:
        raise ConfigError(*explain(error, Fields)) from None


def describe(
    folder: str, *, measure: int, sheet: Path | None, workers: int | None, display: Display
) -> dict[str, Any]:
    """The contents of a data set and, with `sheet`, a PNG of some of its images."""
    display.stage("inspect")
    with Pool(workers) as pool:
        found, pictures = inspect(
            folder, measure=measure, pictures=100 if sheet else 0, run=pool, progress=display.update
        )
    if sheet is not None:
        try:
            sheet.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(pictures).save(sheet, "PNG")
        except OSError as error:
            raise DataError(f"{sheet}: cannot be written: {error.strerror or error}") from error
        found["sheet"] = str(sheet)
    display.done(f"{found['samples']:,} images")
    return found


def text_of(found: Mapping[str, Any]) -> str:
    """The description for people: one line per fact, and one bar per class."""
    facts = {key: value for key, value in found.items() if key != "classes" and value not in ("", {})}
    lines = [f"{key:<16} {_plain(value)}" for key, value in facts.items()]
    most = max(found["classes"].values(), default=0)
    for name, count in found["classes"].items():
        lines.append(f"  {name:<20.20} {count:>10,} {'▇' * round(30 * count / max(most, 1))}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(held)}" for name, held in value.items())
    if isinstance(value, list):
        return ", ".join(f"{item:.4f}" for item in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def verify(folder: str, *, decode: bool, workers: int | None, display: Display) -> dict[str, Any]:
    """All problems of a data set."""
    display.stage("verify")
    with Pool(workers) as pool:
        manifest, faults = check(folder, decode=decode, run=pool, progress=display.update)
    for fault in faults[:_LISTED]:
        display.note(str(fault))
    if len(faults) > _LISTED:
        display.note(f"and {len(faults) - _LISTED:,} more (--json lists all)")
    return {
        "folder": folder,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "digest": manifest.digest,
        "good": not faults,
        "bad": [{"shard": fault.where, "key": fault.key, "reason": fault.reason} for fault in faults],
    }
