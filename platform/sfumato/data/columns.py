"""Which columns of a data set a recipe's batches carry, and the description that a family receives."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace

from sfumato.core.batch import DataSpec
from sfumato.core.columns import RESERVED
from sfumato.data.config import DataSettings
from sfumato.data.format.columns import TEXT, TEXT_COLUMN, ColumnInfo
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError


def carries_text(settings: DataSettings) -> bool:
    """Whether batches have the column of captions."""
    return settings.text or TEXT in (settings.columns or ())


def carried(settings: DataSettings, manifest: Manifest) -> dict[str, ColumnInfo]:
    """The further columns of batches, besides image, label and captions that come one per sample.

    Without `data.columns`, those that encoders added. Raises ConfigError, in one line, for an unknown name.
    """
    found = manifest.columns
    if settings.columns is None:
        names = [name for name, info in found.items() if info.encoder is not None]
    else:
        names = [name for name in settings.columns if name not in RESERVED]
        _check_known(names, settings.path, manifest)
    if settings.text and TEXT in found and TEXT not in names:
        names.append(TEXT)
    chosen = {name: found[name] for name in names if name in found}
    if settings.captions is not None:
        _check_not_encoded(chosen, manifest)
    return chosen


def _check_not_encoded(columns: Mapping[str, ColumnInfo], manifest: Manifest) -> None:
    """Raises ConfigError if texts were encoded that would be changed."""
    for name, info in columns.items():
        encoder = manifest.encoders.get(info.encoder or "")
        if info.kind == "array" and encoder is not None and encoder.transform.startswith("captions"):
            raise ConfigError(
                f"data.captions: {name} was computed from captions as they are; leave data.captions out, or "
                "name the columns without it in data.columns"
            )


def spec_of(settings: DataSettings, manifest: Manifest) -> DataSpec:
    """What a family has to know about the batches: image, classes, and the further columns that they carry.

    Raises ConfigError as `carried` does.
    """
    extra = {name: info.column for name, info in carried(settings, manifest).items()}
    if carries_text(settings) and TEXT not in extra:
        extra = {TEXT: TEXT_COLUMN, **extra}
    return replace(manifest.spec, extra=extra)


def described(columns: Mapping[str, ColumnInfo]) -> dict[str, object]:
    """Identifies the content of columns: how they are read, and their checksums."""
    return {
        name: info.model_dump(mode="json", exclude={"samples", "encoder"})
        for name, info in sorted(columns.items())
        if info.stored != "arrays"  # those are in the shards, whose checksums are in the set's own digest
    }


def _check_known(names: list[str], path: str, manifest: Manifest) -> None:
    known = [*manifest.spec.columns]
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, 1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
        raise ConfigError(f"data.columns: {path} has no column {name!r}; {hint}")
