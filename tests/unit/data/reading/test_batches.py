"""Batches of further columns, from tars that Python's own tarfile wrote."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sfumato.core.batch import to_device
from sfumato.data.columns import spec_of
from sfumato.data.config import DataSettings
from sfumato.data.format.columns import BFLOAT16
from sfumato.data.format.faults import FaultLog
from sfumato.data.format.manifest import Manifest
from sfumato.data.format.samples import Fields
from sfumato.data.order.epochs import Block, Range
from sfumato.data.order.pools import check, pools_of
from sfumato.data.packing.index_existing import IndexOptions, make_index
from sfumato.data.reading import local_reader
from sfumato.data.reading.batches import to_batch
from sfumato.data.reading.chunks import Chunk, from_table, objects, to_table
from sfumato.data.reading.lacking import check as check_lacking
from sfumato.data.reading.ray_reader import _in_order
from sfumato.data.reading.transforms import Colour, Crop, Flip
from sfumato.errors import ConfigError, DataError

ROWS = 24
COLUMNS = {
    "control": {"kind": "image", "member": "line.png"},
    "mask": {"kind": "image", "member": "mask"},
    "depth": {"kind": "array", "member": "depth.npy"},
    "words": {"kind": "tags", "field": "keywords"},
    "pose": {"kind": "vector", "field": "pose"},
    "camera": {"kind": "camera", "field": "camera"},
    "style": {"kind": "label", "field": "style", "classes": ["ink", "oil"]},
    "text": {"kind": "text", "field": "captions", "weights": "weights"},
}
RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)
CONTROLS = RNG.integers(0, 256, (ROWS, 4, 4), dtype=np.uint8)
DEPTHS = RNG.normal(size=(ROWS, 2, 3)).astype(np.float16)
CAMERAS = RNG.normal(size=(ROWS, 3, 4)).astype(np.float32)


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def members(row: int) -> dict[str, bytes]:
    """One sample, its row in the first pixel's place of everything that is not random."""
    meta = {
        "keywords": [f"w{row}", "all"],
        "pose": [row, row + 0.5],
        "camera": CAMERAS[row].tolist(),
        "style": ("ink", "oil")[row % 2],
        "captions": [f"a {row}", f"b {row}", f"c {row}"],
        "weights": [1, 0, 3],
    }
    return {
        "png": encoded(IMAGES[row]),
        "line.png": encoded(CONTROLS[row]),
        "mask.png": encoded(IMAGES[row, :, :, 0]),
        "depth.npy": npy(DEPTHS[row]),
        "cls": str(row % 2).encode(),
        "json": json.dumps(meta).encode(),
    }


def write(folder: Path, columns: dict[str, Any], change: Any = None, per_shard: int = 16) -> Path:
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, ROWS, per_shard)):
        with tarfile.open(folder / f"s-{number}.tar", "w") as tar:
            for row in range(first, min(first + per_shard, ROWS)):
                held = members(row)
                if change is not None:
                    change(row, held)
                for extension, content in held.items():
                    info = tarfile.TarInfo(f"{row:03d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    fields = Fields.model_validate({"columns": columns})
    make_index(folder, IndexOptions(fields=fields), FaultLog("fail", 0), max_pixels=1 << 20)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("columns") / "set", COLUMNS)


def settings_of(folder: Path, *names: str, **options: Any) -> DataSettings:
    return DataSettings(
        path=str(folder), streams=2, shuffle_window=6, columns=names or tuple(COLUMNS), **options
    )


def batches(settings: DataSettings, count: int, **options: Any) -> list[dict[str, Any]]:
    reading = local_reader.read(settings, Manifest.load(settings.path), **{"seed": 4, "batch": 8, **options})
    return [dict(micro.batch) for parts in islice(reading, count) for micro in parts]


def row_of(image_CHW: torch.Tensor) -> int:
    found = [row for row in range(ROWS) if np.array_equal(IMAGES[row].transpose(2, 0, 1), image_CHW.numpy())]
    (row,) = found
    return row


def test_the_manifest_describes_all_columns(folder: Path) -> None:
    spec = spec_of(settings_of(folder), Manifest.load(folder))
    told = {name: (column.kind, column.dtype, column.shape) for name, column in spec.extra.items()}
    assert told == {
        "control": ("image", "uint8", (1, 4, 4)),
        "mask": ("image", "uint8", (1, 8, 8)),
        "depth": ("array", "float16", (2, 3)),
        "words": ("tags", "str", ()),
        "pose": ("vector", "float32", (2,)),
        "camera": ("camera", "float32", (3, 4)),
        "style": ("label", "int64", ()),
        "text": ("text", "str", ()),
    }
    assert spec.extra["style"].classes == ("ink", "oil")
    assert list(spec_of(settings_of(folder, "pose"), Manifest.load(folder)).extra) == ["pose"]
    assert not spec_of(DataSettings(path=str(folder)), Manifest.load(folder)).extra


def test_a_batch_has_every_column_of_its_samples(folder: Path) -> None:
    seen = []
    for batch in batches(settings_of(folder), 3):
        assert set(batch) == {"image", "label", *COLUMNS}
        assert batch["camera"].shape == (8, 3, 4)
        for at in range(8):
            row = row_of(batch["image"][at])
            seen.append(row)
            assert np.array_equal(batch["control"][at, 0].numpy(), CONTROLS[row])
            assert np.array_equal(batch["mask"][at, 0].numpy(), IMAGES[row, :, :, 0])
            assert batch["depth"].dtype == torch.float16
            assert np.array_equal(batch["depth"][at].numpy(), DEPTHS[row])
            assert np.array_equal(batch["camera"][at].numpy(), CAMERAS[row])
            assert batch["pose"][at].tolist() == [row, row + 0.5]
            assert batch["words"][at] == [f"w{row}", "all"]
            assert int(batch["style"][at]) == row % 2
            assert batch["text"][at] in (f"a {row}", f"c {row}")  # b has the weight 0
    assert sorted(seen) == list(range(ROWS))


def test_all_images_become_floats_on_the_device_and_arrays_stay(folder: Path) -> None:
    reading = local_reader.read(settings_of(folder), Manifest.load(folder), seed=4, batch=8)
    host = next(reading)[0].batch
    there = to_device(host, torch.device("cpu"))
    for name in ("image", "control", "mask"):
        assert host[name].dtype == torch.uint8
        assert torch.equal(there[name], host[name].float().div(127.5).sub(1))
    assert there["depth"].dtype == torch.float16


def test_one_flip_moves_all_images(folder: Path) -> None:
    names = ("control", "mask")
    plain, moved = (
        torch_of(batches(settings_of(folder, *names, transforms=transforms), 3))
        for transforms in ((), (Flip(), Colour(brightness=0.5)))
    )
    flipped = 0
    for row in range(ROWS):
        turn = np.array_equal(moved["mask"][row], plain["mask"][row][..., ::-1])
        flipped += turn
        for name in names:  # colour leaves them alone
            expected = plain[name][row][..., ::-1] if turn else plain[name][row]
            assert np.array_equal(moved[name][row], expected)
    assert 4 < flipped < 20
    assert not np.array_equal(moved["image"], plain["image"])


def torch_of(found: list[dict[str, Any]]) -> dict[str, NDArray[np.uint8]]:
    return {name: torch.cat([batch[name] for batch in found]).numpy() for name in found[0] if name != "text"}


@pytest.mark.parametrize("fill", ["reflect", "edge", "zero"])
def test_one_crop_shifts_all_images_at_their_own_sizes(folder: Path, fill: str) -> None:
    mode = {"reflect": "reflect", "edge": "edge", "zero": "constant"}[fill]
    transforms = (Crop(pad=2, fill=fill),)
    plain, moved = (
        torch_of(batches(settings_of(folder, "control", "mask", transforms=t), 3)) for t in ((), transforms)
    )
    places = Counter()
    for row in range(ROWS):
        wide = np.pad(plain["mask"][row, 0], 2, mode)  # type: ignore[call-overload]
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(wide[top : top + 8, left : left + 8], moved["mask"][row, 0])
        ]
        (place,) = found
        places[place] += 1
        assert place[0] % 2 == place[1] % 2 == 0  # whole pixels of the control image, which is half as large
        small = np.pad(plain["control"][row, 0], 1, mode)  # type: ignore[call-overload]
        top, left = place[0] // 2, place[1] // 2
        assert np.array_equal(small[top : top + 4, left : left + 4], moved["control"][row, 0])
    assert len(places) > 4


def test_one_zoom_scales_the_same_part_of_all_images(folder: Path) -> None:
    transforms = (Crop(scale=(0.5, 0.5)),)
    plain, moved = (
        torch_of(batches(settings_of(folder, "control", "mask", transforms=t), 3)) for t in ((), transforms)
    )

    def zoomed(pixels: NDArray[np.uint8], top: int, left: int, side: int) -> NDArray[np.uint8]:
        part = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
        return np.asarray(part.resize(pixels.shape, Image.Resampling.BICUBIC))

    for row in range(ROWS):
        mask, control = plain["mask"][row, 0], plain["control"][row, 0]
        assert any(
            np.array_equal(zoomed(mask, 2 * top, 2 * left, 4), moved["mask"][row, 0])
            and np.array_equal(zoomed(control, top, left, 2), moved["control"][row, 0])
            for top in range(3)
            for left in range(3)
        )


def test_what_cannot_move_together_is_refused(folder: Path) -> None:
    manifest = Manifest.load(folder)
    with pytest.raises(ConfigError, match=r"pad 3 .* \(image 8x8, control 4x4\): make pad a multiple of 2"):
        pools_of(settings_of(folder, "control", transforms=(Crop(pad=3),)), manifest)
    with pytest.raises(ConfigError, match="flip would move the images but not their cameras"):
        check(settings_of(folder, "camera", transforms=(Flip(),)), manifest)
    pools_of(settings_of(folder, "mask", transforms=(Crop(pad=3),)), manifest)


def test_texts_are_drawn_by_weight_and_anew_in_every_epoch(folder: Path) -> None:
    found = batches(settings_of(folder, "text"), 600)
    drawn = Counter(text[0] for batch in found for text in batch["text"])
    assert set(drawn) == {"a", "c"}
    rows = 600 * 8
    assert abs(drawn["c"] / rows - 0.75) < 4 * (0.75 * 0.25 / rows) ** 0.5
    # The same for any number of workers, and after a resume.
    halves = [batches(settings_of(folder, "text"), 2, rank=rank, world_size=2, images=80) for rank in (0, 1)]
    for step in range(2):
        together = [text for half in halves for text in half[step]["text"]]
        assert sorted(together) == sorted(found[10 + step]["text"])
    other = batches(settings_of(folder, "text"), 3, seed=5)
    assert Counter(t for b in other for t in b["text"]) != Counter(t for b in found[:3] for t in b["text"])
    # `data.text` means the same column, and reading everything in order takes the first.
    both = batches(DataSettings(path=str(folder), streams=2, shuffle_window=6, text=True), 3)
    assert [batch["text"] for batch in both] == [batch["text"] for batch in found[:3]]
    (part, *_) = local_reader.read_all(folder, columns=("text", "pose"))
    assert part["text"].tolist() == [f"a {row}" for row in range(16)]
    assert part["pose"][:, 0].tolist() == list(range(16))


@pytest.mark.parametrize("lacking", ["control", "depth", "words", "pose", "style"])
def test_a_sample_without_a_column_is_a_fault(tmp_path: Path, lacking: str) -> None:
    source = COLUMNS[lacking]

    def change(row: int, held: dict[str, bytes]) -> None:
        if row == 5:
            held.pop(str(source.get("member")), None)
            meta = json.loads(held["json"])
            meta.pop(str(source.get("field")), None)
            held["json"] = json.dumps(meta).encode()

    folder = write(tmp_path / "set", {lacking: source}, change)
    assert Manifest.load(folder).columns[lacking].samples == ROWS - 1
    with pytest.raises(DataError, match=f"005: it has no {lacking}"):
        batches(settings_of(folder, lacking), 3)
    skipping = settings_of(folder, lacking, on_error="skip")
    manifest = Manifest.load(folder)
    with pytest.raises(DataError, match=f"1 sample lacks '{lacking}' in .*, first 005 in s-0.tar; give each"):
        check_lacking(settings_of(folder, lacking), manifest)
    check_lacking(skipping, manifest)
    check_lacking(skipping.model_copy(update={"columns": (), "on_error": "fail"}), manifest)
    rows = [row_of(image) for batch in batches(skipping, 3) for image in batch["image"]]
    assert len(rows) == ROWS
    assert 5 not in rows
    assert (
        sum(
            len(batch["image"])
            for batch in batches(settings_of(folder).model_copy(update={"columns": ()}), 3)
        )
        == ROWS
    )


def test_a_further_image_that_cannot_be_decoded_is_a_fault(tmp_path: Path) -> None:
    def change(row: int, held: dict[str, bytes]) -> None:
        if row == 7:
            held["line.png"] = held["line.png"][:60]

    folder = write(tmp_path / "set", {"control": COLUMNS["control"]}, change)
    with pytest.raises(DataError, match="007: its control: "):
        batches(settings_of(folder, "control"), 3)


def test_an_unknown_column_is_one_line_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no column 'contorl'; did you mean 'control'\?") as error:
        pools_of(settings_of(folder, "contorl"), Manifest.load(folder))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="it has image, label, text, control"):
        pools_of(settings_of(folder, "zzz"), Manifest.load(folder))


def test_mixed_sets_need_the_same_columns(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"pose": {"kind": "camera", "field": "pose"}})
    manifest = Manifest.load(folder)
    mix = ({"path": str(other), "weight": 1.0},)
    with pytest.raises(ConfigError, match=r"other has no column 'words', which batches carry"):
        pools_of(settings_of(folder, "words", mix=mix), manifest)
    with pytest.raises(ConfigError, match=r"'pose' of .* is camera float32 \[2\], that of .* is vector"):
        pools_of(settings_of(folder, "pose", mix=mix), manifest)
    same = write(tmp_path / "same", COLUMNS)
    mixed = batches(settings_of(folder, mix=({"path": str(same), "weight": 1.0},)), 3)
    for batch in mixed:
        for at in range(8):
            assert batch["words"][at] == [f"w{row_of(batch['image'][at])}", "all"]


def test_a_chunk_crosses_a_table_unchanged() -> None:
    columns = {
        "image": np.zeros((2, 3, 3, 1), np.uint8),
        "label": np.arange(2),
        "control": RNG.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "brain": np.arange(4, dtype=np.uint16).reshape(2, 2).view(BFLOAT16),
        "flags": np.array([[True, False], [False, False]]),
        "empty": np.zeros((2, 0), np.int16),
        "words": objects([["a", "b"], ["c", "d"]]),
        "text": objects(["ä", ""]),
    }
    table = pa.concat_tables([to_table(Chunk(columns), 3), to_table(Chunk({}, error="bad"), 4)])
    (place, chunk), (_, bad) = from_table(table)
    assert (place, bad.error, list(chunk.columns)) == (
        3,
        "bad",
        sorted(columns, key=list(chunk.columns).index),
    )
    for name, column in columns.items():
        assert chunk.columns[name].dtype == column.dtype
        assert chunk.columns[name].shape == column.shape
        assert chunk.columns[name].tolist() == column.tolist()


def test_bfloat16_keeps_its_bits() -> None:
    values = torch.tensor([[1.5, -3.25e-5], [7e20, 0.0]]).to(torch.bfloat16)
    host = values.view(torch.int16).numpy().view(BFLOAT16)
    batch = to_batch({"image": np.zeros((2, 1, 1, 1), np.uint8), "z": host})
    assert batch["z"].dtype == torch.bfloat16
    assert torch.equal(batch["z"].view(torch.int16), values.view(torch.int16))


def test_reading_that_ends_early_names_the_block(folder: Path) -> None:
    block = Block(epoch=2, stream=1, index=5, ranges=(Range(0, 0, 6),), seed=1)
    part = Chunk({"image": np.zeros((4, 1, 1, 1), np.uint8)})
    arriving: Iterator[tuple[int, Chunk]] = iter([(0, part)])
    with pytest.raises(DataError, match="2 of the 6 rows of block 5 of stream 1 in epoch 2 of pool 0"):
        list(_in_order(arriving, [((0, block),)]))
    # So where a reader's chunks end within a block.
    plan = local_reader.RankPlan(settings_of(folder, "pose"), Manifest.load(folder), 4, 0, 1)
    (chunk,) = plan.readers().chunks(next(plan.blocks(0, 8)))
    cut = Chunk({name: column[:2] for name, column in chunk.columns.items()})
    with pytest.raises(DataError, match="reading ended early: 4 of the 6 rows"):
        next(plan.assemble(iter([cut]), images=0, batch=8))
