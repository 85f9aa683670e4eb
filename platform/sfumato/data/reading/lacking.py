"""Refuses, before training, samples that lack a column which batches have, such as an image of control."""

from __future__ import annotations

from sfumato.data.columns import carried
from sfumato.data.config import DataSettings
from sfumato.data.format.index import load_shard
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading.further import without
from sfumato.errors import DataError


def check(settings: DataSettings, manifest: Manifest) -> None:
    """Raises DataError that names the first sample without a value, unless such samples are to be skipped.

    The manifest says how many samples have a column; indexes are read only where some have none.
    """
    if settings.on_error != "fail":
        return
    _check_one(settings, settings.path, manifest)
    for other in settings.mix:
        _check_one(settings, other.path, Manifest.load(other.path))


def _check_one(settings: DataSettings, folder: str, manifest: Manifest) -> None:
    named = set(carried(settings, manifest)) & set(manifest.columns)
    infos = {name: manifest.columns[name] for name in sorted(named)}
    infos = {name: info for name, info in infos.items() if info.may_lack and info.samples < manifest.samples}
    for name, info in infos.items():
        for shard in manifest.shards:
            keys = without(load_shard(folder, shard), name)
            if not keys:
                continue
            number = manifest.samples - info.samples if info.samples else len(keys)
            lack = "1 sample lacks" if number == 1 else f"{number:,} samples lack"
            raise DataError(
                f"data.columns: {lack} {name!r} in {folder}, first {keys[0]} in {shard.name}; give each its "
                "own and pack again, or leave them out with data.on_error=skip"
            )
