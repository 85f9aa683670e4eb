"""Every kind of reading, from real shards to micro-batches: no number of workers (also none that divides the
streams) and no interruption changes a global batch."""

from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato.core.batch import MicroBatch
from sfumato.data.config import DataSettings, MixSettings
from sfumato.data.format import index
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.data.packing.sources.npz import NpzSource
from sfumato.data.reading import local_reader

STREAMS, ROWS, STEPS = 5, 4, 40
BATCH = STREAMS * ROWS
KINDS = ("plain", "mixed", "balanced", "buckets", "mixed and balanced", "transformed", "faulty")
Row = tuple[tuple[int, ...], bytes, int]


def numbered(folder: Path, first: int, count: int) -> Path:
    """Images that differ, two thirds of them of class 0 and the rest of class 1."""
    folder.mkdir()
    pixels = np.zeros((count, 4, 6), np.uint8)
    pixels[:, 1, 1] = np.arange(first, first + count)
    np.savez(folder / "in.npz", x=pixels, y=(np.arange(count) % 3 == 0).astype(np.int64))
    pack(NpzSource(path=str(folder / "in.npz")), folder / "data", shard_size=37)
    return folder / "data"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataSettings]:
    """The `data:` part of a recipe of every kind."""
    root = tmp_path_factory.mktemp("sets")
    one, other = numbered(root / "one", 0, 103), numbered(root / "other", 150, 41)
    (root / "pictures").mkdir()
    for number in range(90):
        shape = (4, 6) if number % 3 else (6, 4)
        Image.fromarray(np.full(shape, number, np.uint8)).save(root / "pictures" / f"{number:02d}.png")
    pack(
        FolderSource(path=str(root / "pictures"), buckets=("6x4", "4x6"), labels="none"),
        root / "buckets",
        shard_size=20,
    )
    faulty = numbered(root / "faulty", 0, 103)
    for shard in Manifest.load(faulty).shards:
        data = bytearray((faulty / shard.name).read_bytes())
        for row in (3, 11, 12):
            start = int(index.load_shard(str(faulty), shard).offsets[row])
            data[start : start + 8] = b"no image"
        (faulty / shard.name).write_bytes(data)
    mix = (MixSettings(path=str(other), weight=0.3),)

    def of(path: Path, **options: Any) -> DataSettings:
        return DataSettings(path=str(path), streams=STREAMS, shuffle_window=9, **options)

    transforms = [{"kind": "flip"}, {"kind": "crop", "pad": 1}]
    found = (
        of(one),
        of(one, mix=mix),
        of(one, balance="class"),
        of(root / "buckets"),
        of(one, mix=mix, balance="class"),
        of(one, transforms=transforms),
        of(faulty, on_error="skip"),
    )
    return dict(zip(KINDS, found, strict=True))


def rows_of(parts: list[MicroBatch]) -> dict[tuple[int, int], Row]:
    """Every row of one rank's share, by its stream and its place there: shape, pixels, label."""
    found = {}
    for micro in parts:
        places = [
            (piece.stream, row)
            for piece in micro.pieces
            for row in range(piece.first, piece.first + piece.rows)
        ]
        images = micro.batch["image"].numpy()
        labels = micro.batch["label"].tolist() if "label" in micro.batch else [0] * len(images)
        for place, image, label in zip(places, images, labels, strict=True):
            found[place] = (image.shape, image.tobytes(), label)
    return found


@cache
def read(data: DataSettings) -> list[dict[tuple[int, int], Row]]:
    """The first global batches, as one worker reads them without interruption."""
    reading = local_reader.read(data, Manifest.load(data.path), seed=7, batch=BATCH)
    return [rows_of(parts) for parts in islice(reading, STEPS)]


@pytest.mark.parametrize("kind", KINDS)
@given(
    world_size=st.integers(1, STREAMS),
    start=st.integers(0, STEPS - 3),
    micro_batch=st.sampled_from([None, 1, 2, 4, 20]),
)
@settings(max_examples=15, deadline=None)
def test_workers_and_interruptions_change_no_global_batch(
    kind: str, sets: dict[str, DataSettings], world_size: int, start: int, micro_batch: int | None
) -> None:
    data = sets[kind]
    manifest = Manifest.load(data.path)
    together: list[dict[tuple[int, int], Row]] = [{}, {}, {}]
    for rank in range(world_size):
        share = local_reader.read(
            data,
            manifest,
            seed=7,
            batch=BATCH,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
            images=start * BATCH,
        )
        for step in range(3):
            together[step] |= rows_of(next(share))
    assert together == read(data)[start : start + 3]
    assert all(len(batch) == BATCH for batch in together)
    assert all(len({shape for shape, _, _ in batch.values()}) == 1 for batch in together)
