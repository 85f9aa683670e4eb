"""Packing on a cluster: the bytes of one process, however many tasks run at once; errors as one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.format.faults import FaultLog
from sfumato.data.format.images import MAX_PIXELS
from sfumato.data.inspection import inspect
from sfumato.data.packing.index_existing import IndexOptions, make_index
from sfumato.data.packing.pack import pack
from sfumato.data.packing.ray_tasks import RayRunner
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.data.verification import check
from sfumato.errors import DataError

pytestmark = pytest.mark.usefixtures("ray_local")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_cluster_packs_the_bytes_of_one_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for row in range(90):
        folder = tmp_path / "in" / f"class{row % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        width, height = (40, 24) if row % 2 else (24, 30)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.jpg", quality=90)
    source = FolderSource(
        path=str(tmp_path / "in"), size=24, buckets=("auto",), bucket_step=8, upscale=True, val=0.2, dedupe=2
    )
    alone = pack(source, tmp_path / "alone", shard_size=10)
    seen: list[tuple[int, int | None]] = []
    ray = pack(
        source, tmp_path / "ray", shard_size=10, run=RayRunner(3), progress=lambda *at: seen.append(at)
    )
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
    assert {split: m.digest for split, m in ray.manifests.items()} == {
        split: m.digest for split, m in alone.manifests.items()
    }
    assert seen[-1] == (90 - len(ray.duplicates),) * 2
    for split in ("train", "val"):
        folder = tmp_path / "ray" / split
        assert check(folder, run=RayRunner(2))[1] == []
        assert inspect(folder, run=RayRunner(2))[0] == inspect(folder)[0]


def test_an_index_made_on_a_cluster_is_that_of_one_process(tmp_path: Path) -> None:
    pack("digits", tmp_path / "d", shard_size=300)
    packed = contents(tmp_path / "d")
    report = make_index(
        tmp_path / "d",
        IndexOptions(classes=tuple("0123456789")),
        FaultLog("fail", 0),
        max_pixels=MAX_PIXELS,
        overwrite=True,
        run=RayRunner(3),
    )
    assert report.manifest.samples == 1797
    indexed = contents(tmp_path / "d")
    del indexed["manifest.json"], packed["manifest.json"]  # their texts differ
    assert indexed == packed


def test_a_fault_on_the_cluster_reaches_the_user_as_one_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for row in range(6):
        Image.new("L", (8, 8), row).save(tmp_path / "in" / f"{row}.png")
    (tmp_path / "in" / "3.png").write_bytes(b"no image")
    source = FolderSource(path=str(tmp_path / "in"), size=8, channels=1)
    with pytest.raises(DataError, match=r"3\.png: not an image") as caught:
        pack(source, tmp_path / "out", shard_size=2, run=RayRunner(2))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError):
        pack(source, tmp_path / "taken" / "out", run=RayRunner(2))
