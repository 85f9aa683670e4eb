"""Adds captions that a model wrote to a data set, as a column of texts.

Shards stay as they are: the texts are in new indexes next to them. The manifest is written last.
The captions of a finished shard are recorded, so that interrupted work resumes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sfumato.data.format.columns import TEXT, ColumnInfo, EncoderInfo
from sfumato.data.format.index import column_digest, load_shard
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.precompute import WORKING
from sfumato.data.reading.local_reader import read_all
from sfumato.data.storage.filesystems import filesystem, is_remote
from sfumato.data.storage.read import read_bytes, size_of
from sfumato.data.storage.write import remove_tree, write_bytes
from sfumato.errors import DataError

ROWS = 16
"""Images that the model sees at once, always the same number, so that a caption does not depend on others."""


class Captioner(Protocol):
    """Writes captions."""

    def captions(self, image_NHWC: NDArray[np.uint8]) -> Sequence[str]:
        """One for each image."""
        ...


@dataclass(frozen=True, slots=True)
class Captions:
    """A column of texts, `name`, for the data set at `dest`, by the model that `encoder` describes."""

    dest: str
    name: str
    encoder: EncoderInfo

    @property
    def records(self) -> str:
        """Folder, in `dest`, of the captions of finished shards."""
        content = json.dumps(
            [self.encoder.model_dump(mode="json", exclude={"run"}), self.name], sort_keys=True
        )
        return f"{WORKING}{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def record(self, shard: str) -> str:
        return f"{self.records}/{shard}.json"

    def check(self, manifest: Manifest) -> None:
        """Raises DataError if the data set has other texts of this name."""
        info = manifest.columns.get(self.name)
        if info is not None and info.encoder != self.name:
            raise DataError(f"{manifest.name} has a column {self.name!r} already; give the new one a --name")
        if info is None and self.name == TEXT and manifest.captions:
            raise DataError(
                f"{manifest.captions:,} images of {manifest.name} have captions already; give the new ones a "
                "--name, such as written"
            )


def caption_shard(folder: str, manifest: Manifest, number: int, model: Captioner, work: Captions) -> None:
    """Record the captions of one shard; finished ones are kept. Raises DataError for an image that cannot be
    read.
    """
    shard = manifest.shards[number]
    if size_of(work.dest, work.record(shard.name)) is not None:
        return
    first = sum(other.samples for other in manifest.shards[:number])
    found: list[str] = []
    for columns in read_all(folder, ROWS, first=first, stop=first + shard.samples, manifest=manifest):
        image_NHWC = columns["image"]
        rest = np.zeros((ROWS - len(image_NHWC), *image_NHWC.shape[1:]), np.uint8)
        texts = model.captions(np.concatenate([image_NHWC, rest]))
        found += [" ".join(text.split()) for text in texts[: len(image_NHWC)]]
    if not is_remote(work.dest):
        (Path(filesystem(work.dest)[1]) / work.records).mkdir(exist_ok=True)
    write_bytes(work.dest, work.record(shard.name), json.dumps(found).encode())


def finish_captions(manifest: Manifest, work: Captions) -> tuple[Manifest, int]:
    """Write indexes and manifest with all recorded captions; also, how many are empty.

    As the column `text` they become the captions of the data set.
    """
    dest, empty = work.dest, 0
    there = Manifest.load(dest) if Manifest.exists(dest) else manifest
    for shard in manifest.shards:
        texts = json.loads(read_bytes(dest, work.record(shard.name)))
        empty += sum(not text for text in texts)
        index = load_shard(dest, shard)
        column = pa.array([[text] if text else None for text in texts], pa.list_(pa.string()))
        extra = {**index.extra, work.name: column}
        captions = pa.array([text or None for text in texts], pa.string())
        replace(index, extra=extra, captions=captions if work.name == TEXT else index.captions).save(
            dest, shard
        )
    load_shard.cache_clear()
    written = manifest.samples - empty
    info = ColumnInfo(
        kind="text",
        dtype="str",
        stored="index",
        samples=written,
        encoder=work.name,
        sha256=column_digest(dest, manifest.shards, work.name),
    )
    update = {
        "columns": {**there.columns, work.name: info},
        "encoders": {**there.encoders, work.name: work.encoder},
        "captions": written if work.name == TEXT else there.captions,
    }
    there.model_copy(update=update).save(dest)
    if is_remote(dest):
        remove_tree(dest, work.records)
    else:
        records = Path(filesystem(dest)[1]) / work.records
        for path in records.glob("*.json"):
            path.unlink()
        records.rmdir()
    return Manifest.load(dest), empty
