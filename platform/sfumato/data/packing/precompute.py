"""Precomputation: adds a frozen encoder's output for every sample to a data set, as columns.

Existing files are neither copied nor changed: the columns are stored in side files next to the shards, and a
new manifest, written last, describes them. Until then the set is unchanged; afterwards its images keep
their digest. Side files are named after their encoder, so that columns from another encoder are stored
next to the old ones until the manifest names them; then the old ones are deleted.

The files of a shard are recorded when they are complete, so that interrupted work resumes. With another
destination, the set is first linked there (copied, if either place is object storage).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from sfumato.data.format.columns import BFLOAT16, ColumnInfo, EncoderInfo, SideFile
from sfumato.data.format.faults import ImageFault
from sfumato.data.format.images import bombs_refused, decoded
from sfumato.data.format.index import load_shard
from sfumato.data.format.manifest import Manifest, ShardInfo, difference
from sfumato.data.format.several import PlainWriter, Writer
from sfumato.data.reading.column_values import texts_in
from sfumato.data.storage.filesystems import filesystem, is_remote
from sfumato.data.storage.read import local_copy, read_bytes, size_of
from sfumato.data.storage.write import publish, remove_tree, workplace, write_bytes
from sfumato.errors import DataError

ROWS = 64
"""Images that an encoder sees at once, always the same number: the arithmetic of a sample does not depend on
which others are computed with it."""
WORKING = "_precomputing-"
Files = Mapping[str, SideFile]
"""By column, the side file of one shard."""
_FILES = TypeAdapter(dict[str, SideFile])


@runtime_checkable
class TextsEncoder(Protocol):
    """Turns texts into arrays."""

    @property
    def columns(self) -> Mapping[str, ColumnInfo]: ...
    @property
    def text_column(self) -> str:
        """Where the texts are."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """As `ShardEncoder.encode`; the text of a sample that has none is empty."""
        ...


class ShardEncoder(Protocol):
    """Turns images (or, for another encoder, captions) into arrays."""

    @property
    def columns(self) -> Mapping[str, ColumnInfo]: ...
    def encode(
        self, image_NHWC: NDArray[np.uint8], captions: Sequence[str | None]
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays of `columns`, [N, *shape] each, of uint8 images and their captions.

        If a column is float16 or bfloat16, its numbers are float32 here.
        """
        ...


@dataclass(frozen=True, slots=True)
class Addition:
    """Columns that an encoder adds to the data set at `dest`, under the encoder's `name` in the manifest."""

    dest: str
    name: str
    encoder: EncoderInfo
    columns: Mapping[str, ColumnInfo]

    @property
    def identity(self) -> str:
        """Digest of the encoder, its input and its columns; the name of the run does not count."""
        content = [
            self.encoder.model_dump(mode="json", exclude={"run"}),
            {name: info.model_dump(mode="json") for name, info in sorted(self.columns.items())},
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def records(self) -> str:
        """Folder, in `dest`, of the records of finished shards."""
        return f"{WORKING}{self.identity}"

    def file(self, shard: str, column: str) -> str:
        """`NAME-000000.tar` -> `NAME-000000.COLUMN.IDENTITY.bin`."""
        return f"{shard.removesuffix('.tar')}.{column}.{self.identity}.bin"

    def record(self, shard: str) -> str:
        return f"{self.records}/{shard}.json"


def encode_shard(
    folder: str, manifest: Manifest, number: int, encoder: ShardEncoder | TextsEncoder, addition: Addition
) -> Files:
    """Write the side files of one shard of `folder` into the destination; finished ones are kept.

    Raises DataError for a sample that cannot be used: an added column has no gaps.
    """
    shard, dest = manifest.shards[number], addition.dest
    if size_of(dest, addition.record(shard.name)) is not None:
        files = _FILES.validate_json(read_bytes(dest, addition.record(shard.name)))
        if not any(difference(dest, file, checksums=False) for file in files.values()):
            return files
    with workplace(dest) as place:
        if isinstance(encoder, TextsEncoder):
            files = _texts_written(folder, shard, encoder, addition, place)
        else:
            files = _written(folder, manifest, shard, encoder, addition, place)
        publish(dest, place, [file.name for file in files.values()])
    if not is_remote(dest):
        (Path(filesystem(dest)[1]) / addition.records).mkdir(exist_ok=True)
    # Last: the files that it vouches for exist by now.
    write_bytes(dest, addition.record(shard.name), _FILES.dump_json(dict(files)))
    return files


def _written(
    folder: str,
    manifest: Manifest,
    shard: ShardInfo,
    encoder: ShardEncoder,
    addition: Addition,
    place: Path,
) -> dict[str, SideFile]:
    names = {column: addition.file(shard.name, column) for column in addition.columns}
    digests = {column: hashlib.sha256() for column in names}
    drafts = {column: place / f".{name}.part" for column, name in names.items()}
    for draft in drafts.values():
        draft.write_bytes(b"")
    for arrays in _encoded(folder, manifest, shard, encoder):
        for column, draft in drafts.items():
            content = stored(arrays[column], addition.columns[column].dtype, column).tobytes()
            digests[column].update(content)
            with draft.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    files = {}
    for column, draft in drafts.items():
        size = draft.stat().st_size
        os.replace(draft, place / names[column])
        files[column] = SideFile(name=names[column], bytes=size, sha256=digests[column].hexdigest())
    return files


def _texts_written(
    folder: str, shard: ShardInfo, encoder: TextsEncoder, addition: Addition, place: Path
) -> dict[str, SideFile]:
    """The same for texts: of every sample all, or the first where the column holds one value each."""
    index, columns = load_shard(folder, shard), addition.columns
    several = all(info.stored == "several" for info in columns.values())
    of_samples = [texts if several else texts[:1] for texts in texts_in(index, encoder.text_column)]
    files = {column: addition.file(shard.name, column) for column in columns}
    kind = Writer if several else PlainWriter
    writers = {column: kind(place / name) for column, name in files.items()}
    values = _texts_encoded([text for texts in of_samples for text in texts], encoder)
    for texts in of_samples:
        for value in islice(values, len(texts)):
            for column, writer in writers.items():
                writer.add(stored(value[column], columns[column].dtype, column))
        for writer in writers.values():
            writer.end_sample()
    return {column: writer.close(files[column]) for column, writer in writers.items()}


def _texts_encoded(texts: Sequence[str], encoder: TextsEncoder) -> Iterator[dict[str, NDArray[Any]]]:
    """The arrays of each text, which the encoder sees `ROWS` at a time."""
    for first in range(0, len(texts), ROWS):
        some = texts[first : first + ROWS]
        arrays = encoder.encode_texts([*some, *[""] * (ROWS - len(some))])
        for row in range(len(some)):
            yield {column: array[row] for column, array in arrays.items()}


def stored(values: NDArray[Any], dtype: str, column: str) -> NDArray[Any]:
    """The numbers in the type of their column, rounded to nearest, ties to even.

    Raises DataError for one that the type cannot hold.
    """
    if not np.isfinite(values).all():
        raise DataError(f"the encoder's {column} is not finite; was its training completed?")
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(BFLOAT16)
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    if not np.isfinite(found).all():
        raise DataError(f"the encoder's {column} has numbers that {dtype} cannot hold; choose bfloat16")
    return found


def finish(manifest: Manifest, files: Iterable[Files], addition: Addition) -> Manifest:
    """Write the manifest with the columns, replacing those of an encoder of the same name.

    `manifest` is that of the encoded set, `files` has the files of its shards in order.
    """
    dest, found = addition.dest, list(files)
    there = Manifest.load(dest) if Manifest.exists(dest) else manifest
    columns = {
        name: info.model_copy(
            update={
                "samples": manifest.samples,
                "encoder": addition.name,
                "files": {s.name: part[name] for s, part in zip(manifest.shards, found, strict=True)},
            }
        )
        for name, info in addition.columns.items()
    }
    kept = {name: info for name, info in there.columns.items() if info.encoder != addition.name}
    encoders = {**there.encoders, addition.name: addition.encoder}
    whole = there.model_copy(update={"columns": {**kept, **columns}, "encoders": encoders})
    whole.save(dest)
    _remove_old(dest, there, whole)
    if is_remote(dest):
        remove_tree(dest, addition.records)
    else:
        records = Path(filesystem(dest)[1]) / addition.records
        for path in records.glob("*.json"):
            path.unlink()
        records.rmdir()
    return Manifest.load(dest)


def _remove_old(dest: str, before: Manifest, after: Manifest) -> None:
    """Delete the side files of a local set that the new manifest does not name."""
    if is_remote(dest):  # where readers may be at work; storage rules clean up there
        return
    used = {file.name for info in after.columns.values() for file in info.files.values()}
    for info in before.columns.values():
        for file in info.files.values():
            if file.name not in used:
                (Path(filesystem(dest)[1]) / file.name).unlink(missing_ok=True)


def _encoded(
    folder: str, manifest: Manifest, shard: ShardInfo, encoder: ShardEncoder
) -> Iterator[dict[str, NDArray[Any]]]:
    """The arrays of all samples in the order of the index, up to `ROWS` at a time."""
    image, rows = manifest.image_of(shard), load_shard(folder, shard)
    with local_copy(folder, shard.name) as path, path.open("rb") as file, bombs_refused():
        for first in range(0, len(rows), ROWS):
            count = min(ROWS, len(rows) - first)
            pixels = np.zeros((ROWS, image.height, image.width, image.channels), np.uint8)
            for row in range(first, first + count):
                file.seek(int(rows.offsets[row]))
                try:
                    pixels[row - first] = decoded(bytes(file.read(int(rows.sizes[row]))), image)
                except ImageFault as fault:
                    raise DataError(f"{folder}: {shard.name}: {rows.keys[row]}: {fault}") from None
            captions = rows.captions.slice(first, count).to_pylist()
            arrays = encoder.encode(pixels, captions + [None] * (ROWS - count))
            for name, info in encoder.columns.items():
                assert arrays[name].shape == (ROWS, *info.shape), name
            yield {name: array[:count] for name, array in arrays.items()}
