"""A random part of a packed data set, as a data set of its own: links to the tars, and indexes of fewer
samples.

Shadow models of membership inference train on such parts. Whether a sample is in one depends on the seed and
its key alone, so that the part is the same for any packing of the same samples.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from sfumato.core.seeds import derive
from sfumato.data.format import index
from sfumato.data.format.manifest import LeftOut, Manifest
from sfumato.data.storage.filesystems import is_remote
from sfumato.errors import DataError

RANDOM = "random subset"


def subset(folder: str, dest: Path, *, share: float, seed: int) -> Manifest:
    """Write manifest, indexes and links of about a `share` of the samples into `dest`, a new folder.

    Raises DataError for object storage, which has no links, and for sets with further columns.
    """
    manifest = Manifest.load(folder)
    if is_remote(folder) or is_remote(str(dest)):
        raise DataError(
            "a subset has links to the tars, which object storage does not have: copy the set first"
        )
    if manifest.columns:
        raise DataError(
            f"{folder}: subsets of sets with further columns ({', '.join(manifest.columns)}) are not made"
        )
    if dest.exists():
        raise DataError(f"{dest}: exists; choose another place")
    parts, gone = [], hashlib.sha256()
    for shard in manifest.shards:
        rows = index.load_shard(folder, shard)
        keys = rows.keys.to_pylist()
        kept = np.array([derive("subset", seed, key) < share * 2**63 for key in keys], bool)
        for key in (key for key, keep in zip(keys, kept.tolist(), strict=True) if not keep):
            gone.update(key.encode() + b"\0")
        if kept.any():
            parts.append((shard.model_copy(update={"samples": int(kept.sum())}), _rows(rows, kept)))
    if not parts:
        raise DataError(f"a share of {share:g} of {manifest.samples:,} samples leaves none")
    dest.mkdir(parents=True)
    for shard, rows in parts:
        (dest / shard.name).symlink_to((Path(folder) / shard.name).resolve())
        rows.save(dest, shard)
    before = manifest.left_out or LeftOut()
    left = sum(len(rows) for _, rows in parts)
    counts = {**before.counts, RANDOM: before.counts.get(RANDOM, 0) + manifest.samples - left}
    if before.keys_sha256:
        gone.update(before.keys_sha256.encode())
    made = manifest.model_copy(
        update={
            "name": f"{manifest.name}-{seed}",
            "shards": tuple(shard for shard, _ in parts),
            "captions": sum(len(rows) - rows.captions.null_count for _, rows in parts),
            "licences": {},
            "left_out": before.model_copy(update={"counts": counts, "keys_sha256": gone.hexdigest()}),
        }
    )
    made = Manifest.model_validate(made.model_dump(mode="json"))
    made.save(dest)
    return made


def _rows(rows: index.ShardIndex, kept: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> index.ShardIndex:
    mask = pa.array(kept)
    return replace(
        rows,
        keys=rows.keys.filter(mask),
        offsets=rows.offsets[kept],
        sizes=rows.sizes[kept],
        labels=rows.labels[kept],
        captions=rows.captions.filter(mask),
    )
