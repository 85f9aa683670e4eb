"""Precomputation: a frozen encoder's arrays of every sample, written beside its image into new shards.

The new data set has the old one's shards, keys, images, labels and captions, byte for byte, and for each
sample the arrays as npy members; so it trains, and is evaluated against, like the old one. Shards are
written one by one into a folder beside the destination whose name says of what by what they are made:
finished ones are kept when the work is interrupted, and the destination appears when all are there. In
object storage, which has no rename, they are written into the destination, whose manifest comes last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sfumato.data.format import encoded, index
from sfumato.data.format.encoder_info import EncoderInfo
from sfumato.data.format.faults import ImageFault
from sfumato.data.format.images import bombs_refused, decoded
from sfumato.data.format.index import ShardIndex, load_shard
from sfumato.data.format.manifest import Manifest, ShardInfo
from sfumato.data.format.tar import BLOCK, TarWriter
from sfumato.data.storage.filesystems import check_bucket, filesystem, is_remote
from sfumato.data.storage.read import local_copy, read_bytes, size_of
from sfumato.data.storage.write import names_in, publish, remove_tree, workplace, write_bytes
from sfumato.errors import DataError

ROWS = 64
"""Images that an encoder sees at once, always as many: the arithmetic of a sample does not depend on which
others are computed with it."""
_WORKING = "_precomputing-"
_EXTENSIONS = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpg"), (b"RIFF", "webp"), (b"\x93NUMPY", "npy"))


class ShardEncoder(Protocol):
    """What turns images (or, for another encoder, captions) into arrays."""

    @property
    def info(self) -> EncoderInfo: ...
    def encode(
        self, image_NHWC: NDArray[np.uint8], captions: Sequence[str | None]
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays that `info` names, [N, *shape] each, of uint8 images and their captions."""
        ...


@dataclass(frozen=True, slots=True)
class Draft:
    """Where the shards are gathered until all are there, and where the records of finished ones lie in it."""

    dest: str
    place: str
    records: str

    def record(self, shard: str) -> str:
        return f"{self.records}{shard}.json"


def draft_of(dest: str | Path, info: EncoderInfo) -> Draft:
    """The draft of a data set at a folder or URI, made with this encoder of these images."""
    identity = hashlib.sha256(info.model_dump_json(exclude={"run"}).encode()).hexdigest()[:12]
    if is_remote(str(dest)):
        return Draft(str(dest), str(dest), f"{_WORKING}{identity}/")
    target = Path(filesystem(str(dest))[1])
    return Draft(str(target), str(target.with_name(f".{target.name}-precomputing-{identity}")), "")


def encode_shard(
    folder: str, manifest: Manifest, number: int, encoder: ShardEncoder, draft: Draft
) -> ShardInfo:
    """Write one shard with its index into `draft`; a finished one is taken as it is.

    Raises DataError for an image that cannot be used: an encoded set has no gaps.
    """
    shard = manifest.shards[number]
    if size_of(draft.place, draft.record(shard.name)) is not None:
        return ShardInfo.model_validate_json(read_bytes(draft.place, draft.record(shard.name)))
    with workplace(draft.place) as place:
        info = _written(folder, manifest, shard, encoder, place)
        publish(draft.place, place, [shard.name, index.file_name(shard.name), encoded.file_name(shard.name)])
    # Last: what it vouches for is there.
    write_bytes(draft.place, draft.record(shard.name), info.model_dump_json().encode())
    return info


def _written(
    folder: str, manifest: Manifest, shard: ShardInfo, encoder: ShardEncoder, place: Path
) -> ShardInfo:
    rows = load_shard(folder, shard)
    names = [array.name for array in encoder.info.arrays]
    offsets: dict[str, list[int]] = {name: [] for name in names}
    partial = place / f".{shard.name}.part"
    with partial.open("wb") as file:
        tar = TarWriter(file)
        for row, content, arrays in _encoded(folder, manifest, shard, rows, encoder):
            _add(tar, rows, row, content)
            for name in names:
                tar.add(f"{rows.keys[row].as_py()}.{name}.npy", raw := encoded.npy(arrays[name]))
                offsets[name].append(tar.bytes - len(raw) - -len(raw) % BLOCK)
        digest = tar.finish()
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, place / shard.name)
    info = shard.model_copy(update={"bytes": tar.bytes, "sha256": digest})
    index.build(place, shard.name).save(place, info)
    encoded.save_places(place, shard.name, digest, rows.keys.to_pylist(), offsets)
    return info


def finish(manifest: Manifest, shards: Iterable[ShardInfo], info: EncoderInfo, draft: Draft) -> Manifest:
    """Write the manifest and put the folder in its place."""
    whole = manifest.model_copy(update={"shards": tuple(shards), "encoder": info})
    if is_remote(draft.dest):
        whole.save(draft.dest)
        remove_tree(draft.dest, draft.records.rstrip("/"))
        return Manifest.load(draft.dest)
    place = Path(draft.place)
    for shard in whole.shards:
        (place / draft.record(shard.name)).unlink(missing_ok=True)
    whole.save(place)
    place.chmod(0o755)
    os.replace(place, draft.dest)
    return Manifest.load(draft.dest)


def check_destination(dest: str | Path) -> None:
    """Raises DataError where the destination is taken."""
    where = str(dest)
    if is_remote(where):
        check_bucket(where)
    if Manifest.exists(where):
        raise DataError(f"{where}: holds a data set already; choose another place")
    if not is_remote(where):
        place = Path(filesystem(where)[1])
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise DataError(f"{where}: exists and is not empty; choose another place")


def check_draft(draft: Draft) -> None:
    """Raises DataError where something else than this work, interrupted, lies at a remote destination."""
    if not is_remote(draft.dest):
        return
    found = names_in(draft.dest)
    if found and draft.records.rstrip("/") not in found:
        other = any(name.startswith(_WORKING) for name in found)
        what = "holds the unfinished work of another encoder" if other else "exists and is not empty"
        raise DataError(f"{draft.dest}: {what}; choose another place")


def _encoded(
    folder: str, manifest: Manifest, shard: ShardInfo, rows: ShardIndex, encoder: ShardEncoder
) -> Iterator[tuple[int, bytes, dict[str, NDArray[Any]]]]:
    """Every sample in order: its place, its image's bytes, its arrays."""
    image = manifest.image_of(shard)
    with local_copy(folder, shard.name) as path, path.open("rb") as file, bombs_refused():
        for first in range(0, len(rows), ROWS):
            chosen = range(first, min(first + ROWS, len(rows)))
            contents, pixels = [], np.zeros((ROWS, image.height, image.width, image.channels), np.uint8)
            for row in chosen:
                file.seek(int(rows.offsets[row]))
                contents.append(bytes(file.read(int(rows.sizes[row]))))
                try:
                    pixels[row - first] = decoded(contents[-1], image)
                except ImageFault as fault:
                    raise DataError(f"{folder}: {shard.name}: {rows.keys[row]}: {fault}") from None
            captions = rows.captions.slice(first, len(chosen)).to_pylist()
            arrays = encoder.encode(pixels, captions + [None] * (ROWS - len(chosen)))
            _check(arrays, encoder.info)
            for row, content in zip(chosen, contents, strict=True):
                yield row, content, {name: array[row - first] for name, array in arrays.items()}


def _check(arrays: Mapping[str, NDArray[Any]], info: EncoderInfo) -> None:
    for array in info.arrays:
        found = arrays[array.name]
        assert found.shape == (ROWS, *array.shape), array
        assert found.dtype == np.dtype(array.dtype), array
        if not np.isfinite(found).all():
            raise DataError(f"the encoder's {array.name} is not finite; was it trained to the end?")


def _add(tar: TarWriter, rows: ShardIndex, row: int, content: bytes) -> None:
    key, label, caption = rows.keys[row].as_py(), int(rows.labels[row]), rows.captions[row].as_py()
    extension = next(name for magic, name in _EXTENSIONS if content.startswith(magic))
    tar.add(f"{key}.{extension}", content)
    if label != index.NO_LABEL:
        tar.add(f"{key}.cls", str(label).encode())
    if caption is not None:
        tar.add(f"{key}.txt", caption.encode())
