"""Packing and indexing further columns, from every kind of source that has them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from sfumato.data.format.faults import FaultLog
from sfumato.data.format.manifest import Manifest
from sfumato.data.format.samples import Fields
from sfumato.data.inspection import contact_sheet, inspect
from sfumato.data.packing.index_existing import IndexOptions, make_index
from sfumato.data.packing.pack import pack
from sfumato.data.packing.source import SourceConfig
from sfumato.data.packing.sources.digits import DigitsSource
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.data.packing.sources.listing import ListingSource
from sfumato.data.packing.sources.parquet import ParquetSource
from sfumato.data.packing.sources.webdataset import WebDatasetSource
from sfumato.data.reading import local_reader
from sfumato.data.verification import check
from sfumato.errors import DataError

ROWS = 9
RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (ROWS, 6, 8, 3), dtype=np.uint8)
LINES = RNG.integers(0, 256, (ROWS, 6, 8), dtype=np.uint8)
POSES = RNG.normal(size=(ROWS, 3)).astype(np.float32)
BY_MEMBER = {
    "line": {"kind": "image", "member": "line.png"},
    "tags": {"kind": "tags", "field": "keywords"},
    "pose": {"kind": "vector", "field": "pose"},
    "text": {"kind": "text", "field": "captions"},
    "depth": {"kind": "array", "member": "d.npy"},
}
BY_FIELD = {
    "line": {"kind": "image", "field": "line"},
    "tags": {"kind": "tags", "field": "keywords"},
    "pose": {"kind": "vector", "field": "pose"},
    "text": {"kind": "text", "field": "captions"},
}


def png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def fields_of(row: int) -> dict[str, Any]:
    return {
        "keywords": [f"k{row}", "x"],
        "pose": [float(v) for v in POSES[row]],
        "captions": [f"a {row}", f"b {row}"],
    }


def files_of(row: int) -> dict[str, bytes]:
    depth = io.BytesIO()
    np.save(depth, np.full((2,), row, np.int16))
    return {
        "png": png(IMAGES[row]),
        "line.png": png(LINES[row]),
        "d.npy": depth.getvalue(),
        "json": json.dumps(fields_of(row)).encode(),
    }


def folder_source(root: Path) -> SourceConfig:
    for row in range(ROWS):
        for extension, content in files_of(row).items():
            (root / f"{row}.{extension}").write_bytes(content)
    return FolderSource(path=str(root), labels="none", columns=BY_MEMBER)


def tar_source(root: Path) -> SourceConfig:
    with tarfile.open(root / "in.tar", "w") as tar:
        for row in range(ROWS):
            for extension, content in files_of(row).items():
                info = tarfile.TarInfo(f"{row}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return WebDatasetSource(path=str(root), columns=BY_MEMBER)


def listing_source(root: Path) -> SourceConfig:
    folder_source(root)
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "line", "keywords", "pose", "captions"])
        writer.writeheader()
        for row in range(ROWS):
            told = {name: json.dumps(value) for name, value in fields_of(row).items()}
            told["keywords"] = f"k{row}, x"
            writer.writerow({"file": f"{row}.png", "line": f"{row}.line.png", **told})
    return ListingSource(path=str(root / "list.csv"), columns=BY_FIELD)


def parquet_source(root: Path) -> SourceConfig:
    rows = [
        {"image": png(IMAGES[row]), "line": {"bytes": png(LINES[row]), "path": None}, **fields_of(row)}
        for row in range(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "in.parquet")
    return ParquetSource(path=str(root / "in.parquet"), columns=BY_FIELD)


def samples(folder: Path) -> Mapping[int, dict[str, Any]]:
    """All samples of a set, by the row that their first tag names."""
    found = {}
    names = tuple(Manifest.load(folder).columns)
    for part in local_reader.read_all(folder, columns=names):
        for at, tags in enumerate(part["tags"]):
            found[int(tags[0][1:])] = {name: column[at] for name, column in part.items()}
    return found


@pytest.mark.parametrize("make", [folder_source, tar_source, listing_source, parquet_source])
def test_columns_are_packed_with_their_images(make: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    report = pack(make(tmp_path / "in"), tmp_path / "set", shard_size=4)
    manifest, faults = check(tmp_path / "set")
    assert faults == []
    assert manifest == report.manifest
    assert manifest.captions == manifest.columns["text"].samples == ROWS
    assert manifest.columns["line"].shape == (1, 6, 8)
    assert manifest.columns["pose"].shape == (3,)
    found = samples(tmp_path / "set")
    assert sorted(found) == list(range(ROWS))
    for row, sample in found.items():
        assert np.array_equal(sample["image"], IMAGES[row])
        assert np.array_equal(sample["line"][:, :, 0], LINES[row])
        assert np.array_equal(sample["pose"], POSES[row])
        assert (sample["tags"], sample["text"]) == ([f"k{row}", "x"], f"a {row}")
        if "depth" in sample:
            assert sample["depth"].dtype == np.int16
            assert sample["depth"].tolist() == [row, row]
    # The shards are whole by themselves: indexing them anew finds the same.
    fields = Fields.model_validate(
        {
            "columns": {
                "line": {"kind": "image", "member": "line"},
                "tags": {"kind": "tags", "field": "tags"},
                "pose": {"kind": "vector", "field": "pose"},
                "text": {"kind": "text", "field": "text"},
            }
        }
    )
    again = make_index(
        tmp_path / "set",
        IndexOptions(fields=fields),
        FaultLog("fail", 0),
        max_pixels=1 << 20,
        dest=tmp_path / "again",
    ).manifest
    assert again.digest == manifest.digest
    for name in fields.columns:
        assert again.columns[name] == manifest.columns[name]


def test_further_images_get_the_geometry_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = tar_source(tmp_path / "in").model_copy(update={"size": 4, "crop": "random"})
    pack(source, tmp_path / "set")
    manifest = Manifest.load(tmp_path / "set")
    assert manifest.columns["line"].shape == (1, 4, 4)
    for row, sample in samples(tmp_path / "set").items():
        whole = Image.fromarray(LINES[row]).resize((5, 4), Image.Resampling.LANCZOS)
        parts = [np.asarray(whole.crop((left, 0, left + 4, 4))) for left in (0, 1)]
        colour = Image.fromarray(IMAGES[row]).resize((5, 4), Image.Resampling.LANCZOS)
        cut = {left: np.asarray(colour.crop((left, 0, left + 4, 4))) for left in (0, 1)}
        where = [left for left, pixels in cut.items() if np.array_equal(pixels, sample["image"])]
        assert any(np.array_equal(parts[left], sample["line"][:, :, 0]) for left in where)


def test_further_images_follow_their_buckets(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for row in range(8):
        size = (12, 6) if row % 2 else (6, 12)
        Image.new("RGB", size, (row, 0, 0)).save(tmp_path / "in" / f"{row}.png")
        Image.new("L", size, row).save(tmp_path / "in" / f"{row}.line.png")
    columns = {"line": {"kind": "image", "member": "line"}}
    pack(FolderSource(path=str(tmp_path / "in"), buckets=("12x6", "6x12"), columns=columns), tmp_path / "set")
    assert check(tmp_path / "set")[1] == []
    sizes = set()
    for part in local_reader.read_all(tmp_path / "set", columns=("line",)):
        assert part["line"].shape[1:3] == part["image"].shape[1:3]
        assert np.array_equal(part["line"][:, 0, 0, 0], part["image"][:, 0, 0, 0])
        sizes.add(part["line"].shape[1:3])
    assert sizes == {(6, 12), (12, 6)}


def test_samples_that_are_not_like_the_others_are_faults(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = folder_source(tmp_path / "in")
    (tmp_path / "in" / "3.json").write_text(json.dumps({**fields_of(3), "pose": [1.0]}))
    (tmp_path / "in" / "5.line.png").write_bytes(b"no image")
    report = pack(source, tmp_path / "set", on_error="skip")
    told = sorted(str(fault) for fault in report.skipped)
    assert len(told) == 2
    assert any("5" in line and "not an image" in line for line in told)
    assert any("3.png: its pose is float32 of shape [1]" in line for line in told)
    columns = {**BY_MEMBER, "style": {"kind": "tags", "field": "nothing"}}
    without = FolderSource(path=str(tmp_path / "in"), labels="none", columns=columns)
    with pytest.raises(DataError, match="column style: no sample has it"):
        pack(without, tmp_path / "x", on_error="skip")


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"kind": "image"}, "either member, or field"),
        ({"kind": "tags", "member": "tags.txt"}, "comes from a field"),
        ({"kind": "vector", "field": "v", "dtype": "float16"}, "dtype applies only to an array"),
        ({"kind": "picture", "field": "v"}, "kind"),
    ],
)
def test_columns_that_cannot_be_are_refused(column: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FolderSource(path="x", columns={"a": column})


def test_a_source_without_further_columns_says_so() -> None:
    with pytest.raises(ValidationError, match="samples of kind digits have only image"):
        DigitsSource(columns={"a": {"kind": "tags", "field": "b"}})
    with pytest.raises(ValidationError, match="choose another name"):
        FolderSource(path="x", columns={"image": {"kind": "tags", "field": "b"}})


def test_the_contact_sheet_has_a_row_for_each_further_image(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pack(tar_source(tmp_path / "in"), tmp_path / "set")
    found, pictures = inspect(tmp_path / "set", pictures=ROWS)
    assert found["columns"]["line"] == "image uint8 1x6x8 of 9"
    assert [[picture.shape for picture in sample] for sample in pictures] == [[(6, 8, 3), (6, 8, 1)]] * ROWS
    sheet = contact_sheet(pictures)
    assert sheet.size == (ROWS * 98, 2 * 98)
    tile = sheet.crop((1, 98 + 13, 97, 98 + 85)).resize((8, 6), Image.Resampling.NEAREST)
    assert np.array_equal(np.asarray(tile)[:, :, 0], pictures[0][1][:, :, 0])


def test_a_value_that_is_not_where_the_index_says_is_found(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tar_source(tmp_path / "in")
    other = tmp_path / "other"
    fields = Fields.model_validate({"columns": {"line": BY_MEMBER["line"]}})
    make_index(
        tmp_path / "in", IndexOptions(fields=fields), FaultLog("fail", 0), max_pixels=1 << 20, dest=other
    )
    assert check(other)[1] == []
    place = other / "in.index.arrow"
    with pa.ipc.open_file(pa.BufferReader(place.read_bytes())) as reader:
        table = reader.read_all()
    at = table.schema.get_field_index("line")
    places = [{"offset": p["offset"] + 512, "size": p["size"]} for p in table.column(at).to_pylist()]
    moved = table.set_column(at, table.schema.field(at), pa.array(places, table.schema.field(at).type))
    with pa.OSFile(str(place), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(moved)
    from sfumato.data.format.index import load_shard

    load_shard.cache_clear()
    faults = check(other)[1]
    assert sum("its line is not where the index says" in str(fault) for fault in faults) == ROWS
