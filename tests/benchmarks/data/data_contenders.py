"""The ways to read a data set that bench_data.py compares. Each yields batches uint8 [256, H, W(, C)].

All read the same images and decode them to the same pixels; those with a format of their own (streaming,
litdata) are given the same PNG or JPEG bytes in it. `make bench-data` installs those two (extra `peers`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.data.format.index import load
from sfumato.data.format.manifest import Manifest

BATCH = 256
STREAMS = 8
Batches = Iterator[np.ndarray]


@dataclass(frozen=True)
class Place:
    """One data set on disk, in every format that a contender needs."""

    root: Path
    extension: str
    processes: int

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def tars(self) -> list[str]:
        return [str(path) for path in sorted(self.shards.glob("*.tar"))]


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def samples(place: Place) -> Iterator[bytes]:
    """The encoded images of all shards, by index."""
    manifest = Manifest.load(place.shards)
    for shard, index in zip(manifest.shards, load(place.shards, manifest), strict=True):
        content = memoryview((place.shards / shard.name).read_bytes())
        for offset, size in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True):
            yield bytes(content[offset : offset + size])


def bare(place: Place) -> Batches:
    """What one process can do: read, decode by Sfumato's decoders, stack; nothing else."""
    from sfumato.data.format.images import decoded

    info = Manifest.load(place.shards).image
    return _stacked(place, lambda data: decoded(data, info))


def bare_pillow(place: Place) -> Batches:
    """The same by Pillow."""
    return _stacked(place, pillow)


def _stacked(place: Place, decode: Callable[[bytes], np.ndarray]) -> Batches:
    batch: list[np.ndarray] = []
    while True:
        for data in samples(place):
            batch.append(decode(data))
            if len(batch) == BATCH:
                yield np.stack(batch)
                batch = []


def sfumato(place: Place) -> Batches:
    """Ray Data reading blocks in the training order; uint8 as the others."""
    from sfumato.data.config import DataSettings
    from sfumato.data.reading.local_reader import RankPlan
    from sfumato.data.reading.ray_reader import RankReader

    settings = DataSettings(path=str(place.shards), streams=STREAMS, read_tasks=place.processes)
    plan = RankPlan(settings, Manifest.load(place.shards), 0, 0, 1)
    reading = RankReader(plan).batches(images=0, batch=BATCH, collate=lambda columns: columns)
    for (micro,) in reading:
        yield micro.batch["image"]


def webdataset(place: Place) -> Batches:
    """WebDataset in a DataLoader, shards dealt to its processes, decoded by its own Pillow handler."""
    import torch
    import webdataset as wds

    form = "l8" if place.extension == "png" else "rgb8"
    data = (
        wds.WebDataset(place.tars, shardshuffle=False, nodesplitter=None)
        .decode(form)
        .to_tuple(place.extension)
        .batched(BATCH, partial=False, collation_fn=_first_column)
        .repeat()
    )
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=place.processes)
    for batch in loader:
        yield batch.numpy()


def _first_column(rows: Any) -> Any:
    import torch

    return torch.from_numpy(np.stack([row[0] for row in rows]))


def read_webdataset(place: Place) -> Batches:
    """Ray Data's own reader, raw bytes, and a map that decodes."""
    import ray.data

    column = place.extension

    def decode(rows: dict[str, Any]) -> dict[str, Any]:
        return {"image": np.stack([pillow(data) for data in rows[column]])}

    ray.data.DataContext.get_current().enable_progress_bars = False
    while True:
        data = ray.data.read_webdataset(place.tars, decoder=None).map_batches(decode, batch_size=BATCH)
        for batch in data.iter_batches(batch_size=BATCH, batch_format="numpy", drop_last=True):
            yield batch["image"]


def streaming(place: Place) -> Batches:
    """MosaicML Streaming from its own shards, in a DataLoader."""
    from streaming import MDSWriter, StreamingDataset  # type: ignore[import-not-found]
    from torch.utils.data import DataLoader

    folder = place.root / "mds"
    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"image": "bytes"}, progress_bar=False) as out:
            for data in samples(place):
                out.write({"image": data})

    class Images(StreamingDataset):
        def __getitem__(self, at: int) -> np.ndarray:
            return pillow(super().__getitem__(at)["image"])

    data = Images(local=str(folder), shuffle=False, batch_size=BATCH)
    loader = DataLoader(data, BATCH, num_workers=place.processes, collate_fn=np.stack, drop_last=True)
    while True:
        yield from loader


def litdata(place: Place) -> Batches:
    """litdata from its own chunks, in its loader."""
    import litdata as ld  # type: ignore[import-not-found]

    folder = place.root / "litdata"
    if not folder.exists():
        ld.optimize(
            fn=_identity,
            inputs=list(samples(place)),
            output_dir=str(folder),
            chunk_bytes="16MB",
            num_workers=1,
        )

    data = ld.StreamingDataset(str(folder), shuffle=False, drop_last=True, transform=pillow)
    loader = ld.StreamingDataLoader(data, batch_size=BATCH, num_workers=place.processes, collate_fn=np.stack)
    while True:
        yield from loader


def _identity(data: bytes) -> bytes:
    return data


CONTENDERS: dict[str, Callable[[Place], Batches]] = {
    "bare": bare,
    "bare_pillow": bare_pillow,
    "sfumato": sfumato,
    "webdataset": webdataset,
    "read_webdataset": read_webdataset,
    "streaming": streaming,
    "litdata": litdata,
}
ON_RAY = ("sfumato", "read_webdataset")
