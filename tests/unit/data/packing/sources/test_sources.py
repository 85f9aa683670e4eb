"""Sources: what each kind of file holds is what the packed data set gives back."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sfumato.data.format import index
from sfumato.data.format.images import decoded
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.pack import pack
from sfumato.data.packing.recognition import kind_of, source_named
from sfumato.data.packing.source import SourceConfig
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.data.packing.sources.huggingface import HuggingFaceSource
from sfumato.data.packing.sources.idx import IdxSource
from sfumato.data.packing.sources.listing import ListingSource
from sfumato.data.packing.sources.parquet import ParquetSource
from sfumato.data.packing.sources.webdataset import WebDatasetSource
from sfumato.errors import DataError

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 6, 5), dtype=np.uint8)
LABELS = [row % 3 for row in range(12)]
NAMES = ("ant", "bee", "cat")


def png(pixels: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def samples(folder: Path) -> dict[str, tuple[Any, int, str | None]]:
    """Pixels, label and caption of every sample by key, through index and tar."""
    manifest = Manifest.load(folder)
    found = {}
    for shard, rows in zip(manifest.shards, index.load(folder, manifest), strict=True):
        data = (folder / shard.name).read_bytes()
        for key, offset, size, label, caption in zip(
            rows.keys.to_pylist(),
            rows.offsets,
            rows.sizes,
            rows.labels,
            rows.captions.to_pylist(),
            strict=True,
        ):
            pixels = decoded(data[offset : offset + size], manifest.image_of(shard))
            found[key] = (pixels, int(label), caption)
    return found


def member(folder: Path, name: str) -> bytes:
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as archive:
            if name in archive.getnames():
                file = archive.extractfile(name)
                assert file is not None
                return file.read()
    raise AssertionError(f"no {name}")


def idx(array: Any) -> bytes:
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    pack_bytes = gzip.compress if zipped else bytes
    end = ".gz" if zipped else ""
    for part, rows in (("train", slice(0, 9)), ("t10k", slice(9, 12))):
        (tmp_path / f"{part}-images-idx3-ubyte{end}").write_bytes(pack_bytes(idx(GREY[rows])))
        (tmp_path / f"{part}-labels-idx1-ubyte{end}").write_bytes(pack_bytes(idx(np.array(LABELS[rows]))))
    assert kind_of(str(tmp_path)) == "idx"
    assert kind_of(str(tmp_path / f"train-images-idx3-ubyte{end}")) == "idx"
    for part, first, stop in (("train", 0, 9), ("test", 9, 12)):
        source = IdxSource.model_validate({"path": str(tmp_path), "part": part, "classes": "ant,bee,cat"})
        manifest = pack(source, tmp_path / f"out-{part}").manifest
        found = samples(tmp_path / f"out-{part}")
        assert (manifest.classes, len(found)) == (NAMES, stop - first)
        for row in range(stop - first):
            pixels, label, _ = found[f"{row:08d}"]
            np.testing.assert_array_equal(pixels[:, :, 0], GREY[first + row])
            assert label == LABELS[first + row]


def hugging_face_schema() -> pa.Schema:
    features = {"img": {"_type": "Image"}, "fine": {"_type": "ClassLabel", "names": list(NAMES)}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("fine", pa.int64()), ("img", image), ("caption", pa.string()), ("url", pa.string())])
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def hugging_face_table(first: int, stop: int) -> pa.Table:
    rows = range(first, stop)
    return pa.table(
        {
            "fine": LABELS[first:stop],
            "img": [{"bytes": png(PIXELS[row]), "path": None} for row in rows],
            "caption": [f"number {row}" for row in rows],
            "url": [f"u{row}" for row in rows],
        },
        schema=hugging_face_schema(),
    )


def assert_hugging_face(out: Path) -> None:
    assert Manifest.load(out).classes == NAMES
    found = samples(out)
    assert len(found) == 12
    for row in range(12):
        pixels, label, caption = found[f"{row:09d}"]
        np.testing.assert_array_equal(pixels, PIXELS[row])
        assert (label, caption) == (LABELS[row], f"number {row}")
    assert json.loads(member(out, "000000007.json")) == {"url": "u7"}


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for part in range(2):
        path = tmp_path / "data" / f"train-{part:05d}-of-00002.parquet"
        pq.write_table(hugging_face_table(6 * part, 6 * part + 6), path, row_group_size=2)
    pq.write_table(hugging_face_table(0, 1), tmp_path / "data" / "test-00000-of-00001.parquet")
    assert kind_of(str(tmp_path)) == "parquet"
    source = ParquetSource.model_validate(
        {"path": str(tmp_path), "split": "train", "label": "fine", "keep": "url"}
    )
    pack(source, tmp_path / "out")
    assert_hugging_face(tmp_path / "out")
    assert not (tmp_path / ".out-packing").exists()


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    (tmp_path / "hf" / "train").mkdir(parents=True)
    (tmp_path / "hf" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    names = []
    for part in range(2):
        names.append(f"data-{part:05d}-of-00002.arrow")
        table = hugging_face_table(6 * part, 6 * part + 6)
        target = str(tmp_path / "hf" / "train" / names[-1])
        with pa.OSFile(target, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_files": None}
    (tmp_path / "hf" / "train" / "state.json").write_text(json.dumps(state))
    assert kind_of(str(tmp_path / "hf")) == "huggingface"
    with pytest.raises(DataError, match="no split chosen; set split to one of train"):
        pack(str(tmp_path / "hf"), tmp_path / "none")
    source = HuggingFaceSource(path=str(tmp_path / "hf"), split="train", label="fine", keep=("url",))
    pack(source, tmp_path / "out")
    assert_hugging_face(tmp_path / "out")
    state["_data_files"] = [{"filename": "../../secret.arrow"}]
    (tmp_path / "hf" / "train" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="does not list its files"):
        pack(source, tmp_path / "other")


def test_images_that_a_table_only_names_stay_inside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(PIXELS[0]))
    (tmp_path / "outside.png").write_bytes(png(PIXELS[1]))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def write(path: str) -> None:
        rows = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": path}]
        pq.write_table(pa.table({"image": pa.array(rows, image)}), tmp_path / "in" / "t.parquet")

    for path in ("../outside.png", str(tmp_path / "outside.png")):
        write(path)
        report = pack(str(tmp_path / "in" / "t.parquet"), tmp_path / "out", on_error="skip", overwrite=True)
        assert [fault.reason for fault in report.skipped] == ["its name leads out of the folder"]
        (pixels, _, _) = samples(tmp_path / "out")["000000000"]
        np.testing.assert_array_equal(pixels, PIXELS[0])


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_listings(tmp_path: Path, form: str) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    rows = []
    for row in range(12):
        name = f"deep/{row}.png" if row % 2 else f"{row}.png"
        (tmp_path / "in" / name).write_bytes(png(PIXELS[row]))
        rows.append(
            {"file_name": name, "label": NAMES[LABELS[row]], "text": f'say "{row}", ü', "size": str(row)}
        )
    path = tmp_path / "in" / f"metadata.{form}"
    if form == "csv":
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    pack(ListingSource.model_validate({"path": str(path), "keep": "size"}), tmp_path / "out")
    found = samples(tmp_path / "out")
    for row in range(12):
        pixels, label, caption = found[f"deep/{row}" if row % 2 else str(row)]
        np.testing.assert_array_equal(pixels, PIXELS[row])
        assert (label, caption) == (LABELS[row], f'say "{row}", ü')
    assert json.loads(member(tmp_path / "out", "deep/7.json")) == {"size": "7"}


def test_a_folder_with_metadata_beside_its_images(tmp_path: Path) -> None:
    for row in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{row}.png").write_bytes(png(PIXELS[row]))
        meta = {"kind": NAMES[LABELS[row]], "says": f"s{row}"}
        (tmp_path / "in" / f"{row}.json").write_text(json.dumps(meta))
    source = FolderSource(path=str(tmp_path / "in"), labels="json.kind", caption="json.says")
    assert pack(source, tmp_path / "out").manifest.classes == NAMES
    found = samples(tmp_path / "out")
    assert [found[str(row)][1:] for row in range(4)] == [(LABELS[row], f"s{row}") for row in range(4)]
    assert json.loads(member(tmp_path / "out", "2.json")) == {"kind": "cat", "says": "s2"}


def test_another_web_data_set_is_sharded_anew_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    original = {}
    for part in range(2):
        with tarfile.open(tmp_path / "in" / f"s-{part}.tar", "w") as archive:
            for row in range(6 * part, 6 * part + 6):
                out = io.BytesIO()
                Image.fromarray(PIXELS[row]).save(out, "JPEG", quality=60)
                original[f"k{row}.jpg"] = out.getvalue()
                parts = {"jpg": out.getvalue(), "cls": str(LABELS[row]).encode(), "txt": f"t{row}".encode()}
                for extension, content in parts.items():
                    info = tarfile.TarInfo(f"k{row}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    source = WebDatasetSource(path=str(tmp_path / "in"), format="keep", classes=NAMES)
    manifest = pack(source, tmp_path / "out", shard_size=5).manifest
    assert (manifest.shard_samples, manifest.classes, manifest.captions) == ((5, 5, 2), NAMES, 12)
    assert {name: member(tmp_path / "out", name) for name in original} == original
    assert {key: found[1:] for key, found in samples(tmp_path / "out").items()} == {
        f"k{row}": (LABELS[row], f"t{row}") for row in range(12)
    }


def text(name: str, content: str) -> Callable[[Path], SourceConfig]:
    def make(folder: Path) -> SourceConfig:
        (folder / name).write_text(content)
        return source_named(str(folder / name))

    return make


def idx_bytes(content: bytes) -> Callable[[Path], SourceConfig]:
    def make(folder: Path) -> SourceConfig:
        (folder / "x-idx3-ubyte").write_bytes(content)
        return IdxSource(path=str(folder / "x-idx3-ubyte"))

    return make


BAD: dict[str, tuple[Callable[[Path], SourceConfig], str]] = {
    "idx magic": (idx_bytes(b"hello world"), "not an IDX file"),
    "idx type": (idx_bytes(struct.pack(">BBBB3I", 0, 0, 0x0D, 3, 1, 2, 2)), "type 0x0d"),
    "idx short": (idx_bytes(idx(GREY)[:-5]), "truncated: 355 bytes where its header says 360"),
    "idx long": (idx_bytes(idx(GREY) + b"x"), "longer than its header says"),
    "idx bomb": (idx_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, *[0xFFFFFFFF] * 3)), "announces"),
    "idx gzip": (idx_bytes(gzip.compress(idx(GREY))[:-9]), "damaged|truncated"),
    "parquet": (text("a.parquet", "no"), "cannot be read as Parquet"),
    "csv column": (text("a.csv", "name,label\nx,1\n"), "no column of file names; it has name, label"),
    "csv cells": (text("a.csv", "file,label\nx.png\n"), "line 2: not as many cells"),
    "csv outside": (text("a.csv", "file\n../x.png\n"), "leads out of the folder"),
    "csv missing": (text("a.csv", "file\nx.png\n"), "x.png: no such file"),
    "jsonl": (text("a.jsonl", '{"file": "x"}\n[1]\n'), "line 2: not a JSON object"),
    "empty": (text("a.csv", "file\n"), "lists no files"),
    "no tars": (lambda at: WebDatasetSource(path=str(at)), "no file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sources_get_one_line(name: str, tmp_path: Path) -> None:
    make, words = BAD[name]
    with pytest.raises(DataError, match=words) as caught:
        pack(make(tmp_path), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out-packing").exists()
