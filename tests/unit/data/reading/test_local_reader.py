"""From shards to micro-batches in this process: content, order, resume, faults."""

from __future__ import annotations

import io
import tarfile
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

from sfumato.core.batch import MicroBatch, to_device
from sfumato.data.config import DataSettings
from sfumato.data.format import index
from sfumato.data.format.images import decoded
from sfumato.data.format.manifest import ImageInfo, Manifest, ShardInfo, file_digest
from sfumato.data.order.epochs import Order
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.npz import NpzSource
from sfumato.data.reading import local_reader
from sfumato.data.reading.batches import MicroBatches
from sfumato.data.reading.chunks import Chunk, from_table, to_table
from sfumato.data.reading.local_reader import LocalReader, RankPlan
from sfumato.errors import DataError

SAMPLES = 203
SEED = 11


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that carry their own number in their pixels, in four shards."""
    folder = tmp_path_factory.mktemp("numbered")
    pixels = np.zeros((SAMPLES, 2, 3), np.uint8)
    pixels[:, 0, 0] = np.arange(SAMPLES)
    np.savez(folder / "in.npz", x=pixels, y=np.arange(SAMPLES) % 7)
    pack(NpzSource(path=str(folder / "in.npz")), folder / "data", shard_size=60)
    return folder / "data"


def settings_for(folder: Path, **options: Any) -> DataSettings:
    return DataSettings(path=str(folder), streams=4, shuffle_window=16, **options)


def numbers(batch: MicroBatch) -> list[int]:
    return batch.batch["image"][:, 0, 0, 0].tolist()


def taken(folder: Path, count: int, **options: Any) -> list[list[MicroBatch]]:
    settings = settings_for(folder)
    reading = local_reader.read(settings, Manifest.load(folder), seed=SEED, **{"batch": 24, **options})
    return list(islice(reading, count))


def test_batches_hold_what_the_order_says(numbered: Path) -> None:
    manifest = Manifest.load(numbered)
    keys = [shard.keys.to_pylist() for shard in index.load(numbered, manifest)]
    order = Order(SEED, manifest.shard_samples, 4, 16)
    for step, (micro,) in enumerate(taken(numbered, 30)):
        expected = []
        for stream in range(4):
            for row in range(6):
                _, shard, place = order.sample_at(stream, step * 6 + row)
                expected.append(int(keys[shard][place]))
        assert numbers(micro) == expected
        assert micro.batch["label"].tolist() == [number % 7 for number in expected]
        assert micro.batch["image"].shape == (24, 1, 2, 3)
        assert micro.batch["image"].dtype == torch.uint8
        pixels = to_device(micro.batch, torch.device("cpu"))["image"]
        assert pixels.dtype == torch.float32
        assert pixels.min() == -1


def test_resume_is_arithmetic_also_inside_blocks_and_over_epochs(numbered: Path) -> None:
    whole = [numbers(micro) for (micro,) in taken(numbered, 40)]
    for start in (1, 7, 8, 9, 33):
        assert [numbers(micro) for (micro,) in taken(numbered, 5, images=start * 24)] == whole[
            start : start + 5
        ]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(numbered: Path, world_size: int) -> None:
    alone = [sorted(numbers(micro)) for (micro,) in taken(numbered, 12)]
    ranks = [taken(numbered, 12, world_size=world_size, rank=rank) for rank in range(world_size)]
    together = [
        sorted(n for rank in ranks for micro in rank[step] for n in numbers(micro)) for step in range(12)
    ]
    assert together == alone


@pytest.mark.parametrize("micro_batch", [2, 3, 6, 12, 24])
def test_micro_batches_cut_the_same_rows(numbered: Path, micro_batch: int) -> None:
    whole = [numbers(micro) for (micro,) in taken(numbered, 6)]
    for step, parts in enumerate(taken(numbered, 6, micro_batch=micro_batch)):
        assert [part.rows for part in parts] == [micro_batch] * (24 // micro_batch)
        for part in parts:
            expected = [
                whole[step][piece.stream * 6 + row]
                for piece in part.pieces
                for row in range(piece.first, piece.first + piece.rows)
            ]
            assert numbers(part) == expected


def test_chunks_cross_processes_as_tables(numbered: Path) -> None:
    plan = RankPlan(settings_for(numbered), Manifest.load(numbered), SEED, 1, 2)
    readers = plan.readers()

    def sent() -> Iterator[Chunk]:
        for block in islice(plan.blocks(48, 24), 40):
            table = pa.concat_tables([to_table(chunk, 0) for chunk in readers.chunks(block)])
            yield from (chunk for _, chunk in from_table(table))

    whole = LocalReader(plan).batches(images=48, batch=24)
    cut = list(plan.assemble(sent(), images=48, batch=24))
    assert len(cut) > 20
    for (one,), (other,) in zip(cut, whole, strict=False):
        assert torch.equal(one.batch["image"], other.batch["image"])
        assert torch.equal(one.batch["label"], other.batch["label"])


def test_a_task_that_knows_its_own_shards_reads_the_same(numbered: Path) -> None:
    plan = RankPlan(settings_for(numbered), Manifest.load(numbered), SEED, 0, 1)
    readers = plan.readers()
    blocks = list(islice(plan.blocks(0, 24), 40))
    assert {part.shard % 4 for block in blocks for part in block.ranges} == {0, 1, 2, 3}
    for block in blocks:
        narrowed = readers.only([block])
        for mine, theirs in zip(narrowed.chunks(block), readers.chunks(block), strict=True):
            assert np.array_equal(mine.columns["image"], theirs.columns["image"])


def test_read_all_reads_every_sample_once_in_order(numbered: Path) -> None:
    def pixels(**options: Any) -> list[int]:
        return [
            n
            for columns in local_reader.read_all(numbered, 25, **options)
            for n in columns["image"][:, 0, 0, 0]
        ]

    whole = pixels()
    assert sorted(whole) == list(range(SAMPLES))
    keys = [key for shard in index.load(numbered, Manifest.load(numbered)) for key in shard.keys.to_pylist()]
    assert whole == [int(key) for key in keys]
    assert pixels(first=0, stop=90) + pixels(first=90) == whole


GREY = ImageInfo(channels=1, height=3, width=4)


def image_bytes(form: str, pixels: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    if form == "npy":
        np.save(out, pixels, allow_pickle=False)
    else:
        Image.fromarray(pixels).save(out, form, **({"lossless": True} if form == "webp" else {}))
    return out.getvalue()


@pytest.mark.parametrize("form", ["png", "webp", "npy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_lossless_format_decodes_to_its_pixels(form: str, channels: int) -> None:
    shape = (3, 4) if channels == 1 else (3, 4, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    info = ImageInfo(channels=3 if channels == 3 else 1, height=3, width=4)
    np.testing.assert_array_equal(decoded(image_bytes(form, pixels), info), pixels.reshape(3, 4, -1))


def bad_members() -> dict[str, tuple[bytes, str, str]]:
    """Members of a sample that cannot be used: content, extension, and a word of the reason."""
    good = np.zeros((3, 4), np.uint8)
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        huge, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}
    )
    return {
        "noise": (b"no image at all", "png", "not an image"),
        "cut": (
            image_bytes("png", np.random.default_rng(0).integers(0, 256, (3, 4), dtype=np.uint8))[:-30],
            "png",
            "decoded",
        ),
        "size": (image_bytes("png", good.T.copy()), "png", "3x4, where all are 4x3"),
        "gif": (image_bytes("gif", good), "png", "not an image"),
        "pickle": (pickled.getvalue(), "npy", "npy"),
        "huge": (huge.getvalue(), "npy", "shape"),
        "float": (image_bytes("npy", good.astype(np.float32)), "npy", "float32"),
    }


def damaged_set(folder: Path, bad: dict[str, tuple[bytes, str, str]], good: int) -> Path:
    """A labelled set of `good` numbered images with bad samples between them."""
    folder.mkdir()
    pixels = np.zeros((good, 3, 4), np.uint8)
    pixels[:, 0, 0] = np.arange(good)
    members = [(f"good{n:03d}", "png", image_bytes("png", pixels[n])) for n in range(good)]
    for place, (name, (data, extension, _)) in enumerate(bad.items()):
        members.insert(3 * place, (name, extension, data))
    with tarfile.open(folder / "s-0.tar", "w") as archive:
        for key, extension, data in members:
            label = b"9" if key == "label" else b"1"
            for name, content in ((extension, data), ("cls", label)):
                if (key, name) == ("unlabelled", "cls"):
                    continue
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    shard = ShardInfo(
        name="s-0.tar",
        samples=len(members),
        bytes=(folder / "s-0.tar").stat().st_size,
        sha256=file_digest(str(folder), "s-0.tar"),
    )
    index.build(folder, "s-0.tar").save(folder, shard)
    Manifest(name="s", shards=(shard,), image=GREY, classes=("a", "b")).save(folder)
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    good = image_bytes("png", np.zeros((3, 4), np.uint8))
    bad = bad_members() | {"label": (good, "png", "9"), "unlabelled": (good, "png", "no label")}
    return damaged_set(tmp_path_factory.mktemp("damaged") / "data", bad, good=31)


def damaged_reading(folder: Path, **options: Any) -> MicroBatches:
    settings = DataSettings(path=str(folder), streams=2, shuffle_window=10, **options)
    return local_reader.read(settings, Manifest.load(folder), seed=1, batch=4)


def test_faults_stop_training_by_default_and_are_named(damaged: Path) -> None:
    with pytest.raises(DataError, match=r"s-0\.tar: \w+: .*leave it out with data.on_error=skip"):
        list(islice(damaged_reading(damaged), 10))


def test_skipped_samples_are_listed_with_reasons_and_replaced_by_others(damaged: Path) -> None:
    reading = damaged_reading(damaged, on_error="skip")
    batches = list(islice(reading, 100))
    reasons = {fault.key: fault.reason for fault in reading.faults}
    expected = {name: word for name, (_, _, word) in bad_members().items()}
    expected |= {"label": "label 9 is out of range 0..1", "unlabelled": "no label"}
    assert reasons.keys() == expected.keys()
    assert all(word in reasons[name] for name, word in expected.items()), reasons
    assert {n for (micro,) in batches for n in numbers(micro)} == set(range(31))


def test_skipping_keeps_the_order_of_the_rest_and_resume_exact(damaged: Path) -> None:
    settings = DataSettings(path=str(damaged), streams=2, shuffle_window=10, on_error="skip")
    manifest = Manifest.load(damaged)
    keys = index.load(damaged, manifest)[0].keys.to_pylist()
    order = Order(1, manifest.shard_samples, 2, 10)
    whole = [numbers(micro) for (micro,) in islice(damaged_reading(damaged, on_error="skip"), 30)]
    for step, batch in enumerate(whole):
        for row, number in enumerate(batch):
            _, _, place = order.sample_at(row // 2, step * 2 + row % 2)
            if keys[place].startswith("good"):
                assert keys[place] == f"good{number:03d}"
    resumed = local_reader.read(settings, manifest, seed=1, batch=4, images=4 * 13)
    assert [numbers(micro) for (micro,) in islice(resumed, 10)] == whole[13:23]


def test_too_many_faults_stop_training(damaged: Path) -> None:
    with pytest.raises(DataError, match=r"more than data\.max_errors=4"):
        list(islice(damaged_reading(damaged, on_error="skip", max_errors=4), 100))


def test_read_all_leaves_faulty_samples_out(damaged: Path) -> None:
    read = [n for c in local_reader.read_all(damaged, 8, on_error="skip") for n in c["image"][:, 0, 0, 0]]
    assert read == list(range(31))
    with pytest.raises(DataError, match="noise"):
        list(local_reader.read_all(damaged))


def test_a_set_without_a_good_sample_cannot_be_skipped_over(tmp_path: Path) -> None:
    folder = damaged_set(tmp_path / "d", bad_members(), good=0)
    with pytest.raises(DataError, match="none of the"):
        next(damaged_reading(folder, on_error="skip"))


def test_a_shard_cut_short_after_it_was_verified(numbered: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(numbered)
    for path in numbered.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".tar" else data)
    with pytest.raises(DataError, match="the shard ends before it"):
        list(islice(local_reader.read(settings_for(tmp_path), manifest, seed=0, batch=24), 20))
    (tmp_path / manifest.shards[0].name).unlink()
    with pytest.raises(DataError, match=f"{manifest.shards[0].name}: missing"):
        list(
            islice(local_reader.read(settings_for(tmp_path, on_error="skip"), manifest, seed=0, batch=24), 20)
        )


def test_captions_come_with_their_images(tmp_path: Path) -> None:
    for number in range(40):
        pixels = np.zeros((3, 4), np.uint8)
        pixels[0, 0] = number
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number:02d}.png")
        if number % 4:
            (tmp_path / "in" / f"{number:02d}.txt").write_text(f"number {number} – “ü”\n", encoding="utf-8")
    pack(str(tmp_path / "in"), tmp_path / "data")
    plan = RankPlan(settings_for(tmp_path / "data", text=True), Manifest.load(tmp_path / "data"), SEED, 0, 1)
    readers = plan.readers()
    sent = (
        chunk
        for block in plan.blocks(0, 8)
        for part in readers.chunks(block)
        for _, chunk in from_table(to_table(part, 0))
    )
    for (micro,) in islice(plan.assemble(sent, images=0, batch=8, micro_batch=None), 12):
        texts = micro.batch["text"].to("cpu", non_blocking=True)
        assert texts == [f"number {n} – “ü”" if n % 4 else "" for n in numbers(micro)]
    assert "text" not in next(reading_of(tmp_path / "data"))[0].batch


def reading_of(folder: Path) -> MicroBatches:
    return local_reader.read(settings_for(folder), Manifest.load(folder), seed=SEED, batch=8)
