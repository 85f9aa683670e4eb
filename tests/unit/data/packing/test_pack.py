"""Packing: the same input gives the same bytes, and each bad input gets one clear line."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits

from sfumato.data.config import DataSettings
from sfumato.data.format import index
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.packing.pack import PackReport, pack
from sfumato.data.packing.recognition import source_named
from sfumato.data.packing.source import SourceConfig
from sfumato.data.packing.sources.digits import DigitsSource
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.data.packing.sources.npz import NpzSource
from sfumato.data.reading.local_reader import read_all
from sfumato.errors import DataError
from sfumato.provenance.filters import Classifier, FilterConfig, Images, Scores

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (12, 10), mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8), mode=mode).save(path, **options)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def by_key(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    manifest = Manifest.load(folder)
    keys = [key for shard in index.load(folder, manifest) for key in shard.keys.to_pylist()]
    images = np.concatenate([columns["image"] for columns in read_all(folder, 5)])
    return dict(zip(keys, images, strict=True))


class BrightConfig(FilterConfig):
    """Stands for a classifier: finds bright images."""

    def build(self) -> Classifier:
        return Bright()


class Bright(Classifier):
    def scores(self, images_NHWC: Images) -> Scores:
        return (images_NHWC.mean((1, 2, 3)) / 255).astype(np.float32)


def test_what_the_filter_finds_is_left_out_and_listed(tmp_path: Path) -> None:
    for value in (0, 100, 200, 250):
        shade = Image.new("L" if value == 100 else "RGB", (8, 8), value if value == 100 else (value,) * 3)
        (tmp_path / "a").mkdir(exist_ok=True)
        shade.save(tmp_path / "a" / f"{value}.png")
    source = FolderSource(path=str(tmp_path / "a"), filter=BrightConfig(threshold=0.7), channels=3)
    report = pack(source, tmp_path / "d")
    assert report.filtered == (("200", 0.7843), ("250", 0.9804))
    assert sorted(by_key(tmp_path / "d")) == ["0", "100"]
    with pytest.raises(DataError, match="filter: finds all 4 images at 0; raise its threshold"):
        pack(source.model_copy(update={"filter": BrightConfig(threshold=0)}), tmp_path / "e")
    assert not (tmp_path / "e").exists()
    plain = pack(source.model_copy(update={"filter": None}), tmp_path / "f")
    assert (plain.filtered, plain.manifest.samples) == ((), 4)


def test_digits_are_packed_losslessly_and_mixed(tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    report = pack(DigitsSource(), tmp_path / "d", shard_size=500, progress=lambda *at: calls.append(at))
    manifest = report.manifest
    assert [shard.samples for shard in manifest.shards] == [500, 500, 500, 297]
    assert (manifest.samples, manifest.spec.shape, manifest.spec.num_classes) == (1797, (1, 8, 8), 10)
    assert calls[-1] == (1797, 1797)
    digits = load_digits()
    images = by_key(tmp_path / "d")
    for row in range(0, 1797, 50):
        np.testing.assert_allclose(images[f"{row:08d}"][:, :, 0], digits.images[row] * 255 / 16, atol=0.5)
    assert index.class_counts(tmp_path / "d", manifest).tolist() == np.bincount(digits.target).tolist()
    labels = np.concatenate([columns["label"] for columns in read_all(tmp_path / "d")])
    keys = [key for shard in index.load(tmp_path / "d", manifest) for key in shard.keys.to_pylist()]
    assert labels.tolist() == digits.target[[int(key) for key in keys]].tolist()


def test_the_same_input_gives_the_same_bytes_and_digest(tmp_path: Path) -> None:
    one = pack("digits", tmp_path / "one").manifest
    two = pack(DigitsSource(licence="other words"), tmp_path / "elsewhere" / "two").manifest
    assert one.digest == two.digest
    del (first := contents(tmp_path / "one"))["manifest.json"]
    del (second := contents(tmp_path / "elsewhere" / "two"))["manifest.json"]
    assert first == second
    assert pack("digits", tmp_path / "three", shard_size=900).manifest.digest != one.digest


def test_a_folder_gives_labels_captions_and_colours(tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    for name in ("cats/b.1.png", "cats/b_1.png", "dogs/deep/x.jpg", "dogs/ümlaut.webp"):
        picture(source / name)
    (source / "cats" / "b.1.txt").write_text("a cat\n", encoding="utf-8")
    (source / "dogs" / ".hidden.png").write_bytes(b"no image")
    report = pack(FolderSource(path=str(source)), tmp_path / "out")
    manifest = report.manifest
    assert manifest.classes == ("cats", "dogs")
    assert manifest.spec.shape == (3, 10, 12)
    assert sorted(by_key(tmp_path / "out")) == ["cats/b_1", "cats/b_1-2", "dogs/deep/x", "dogs/ümlaut"]
    with tarfile.open(tmp_path / "out" / manifest.shards[0].name) as archive:
        texts = [m for m in archive.getmembers() if m.name.endswith(".txt")]
        file = archive.extractfile(texts[0])
        assert file is not None
        assert (len(texts), texts[0].name, file.read()) == (1, "cats/b_1.txt", b"a cat")
    original = np.asarray(Image.open(source / "cats" / "b.1.png"))
    np.testing.assert_array_equal(by_key(tmp_path / "out")["cats/b_1"], original)
    unlabelled = pack(FolderSource(path=str(source), labels="none"), tmp_path / "plain").manifest
    assert unlabelled.classes == ()
    assert all("label" not in columns for columns in read_all(tmp_path / "plain"))


def test_resizing_is_antialiased_and_central(tmp_path: Path) -> None:
    pixels = np.zeros((64, 128), np.uint8)
    pixels[:, ::2] = 255  # the finest stripes: without a low-pass they would alias
    pixels[:, :32] = pixels[:, 96:] = 0  # what the centre crop cuts off
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "stripes.png")
    pack(FolderSource(path=str(tmp_path / "in"), size=16), tmp_path / "out")
    (image,) = by_key(tmp_path / "out").values()
    assert image.shape == (16, 16, 1)
    assert np.abs(image[:, 2:-2].astype(int) - 127).max() <= 8


def test_transparency_becomes_white_exif_is_applied_and_16_bits_become_8(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(folder / "clear.png")
    pack(FolderSource(path=str(folder)), tmp_path / "a")
    assert (by_key(tmp_path / "a")["clear"] == 255).all()
    (folder / "clear.png").unlink()
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(folder / "deep.png")
    pack(FolderSource(path=str(folder)), tmp_path / "b")
    assert (by_key(tmp_path / "b")["deep"] == 0x80).all()
    (folder / "deep.png").unlink()
    upright = np.zeros((6, 4), np.uint8)
    upright[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(upright).copy()).save(folder / "turned.png", exif=exif)
    assert pack(FolderSource(path=str(folder)), tmp_path / "c").manifest.spec.shape == (1, 6, 4)
    np.testing.assert_array_equal(by_key(tmp_path / "c")["turned"][:, :, 0], upright)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz_arrays_under_usual_and_own_names(tmp_path: Path, channels: int | None) -> None:
    pixels = RNG.integers(0, 256, (20, 6, 5, *([channels] if channels else [])), dtype=np.uint8)
    labels = np.arange(20)[:, None] % 3
    np.savez(tmp_path / "usual.npz", x_train=pixels, y_train=labels)
    np.savez(tmp_path / "own.npz", pics=pixels, kinds=labels)
    one = pack(source_named(str(tmp_path / "usual.npz")), tmp_path / "one").manifest
    own = NpzSource(path=str(tmp_path / "own.npz"), images="pics", labels="kinds", classes=("a", "b", "c"))
    two = pack(own, tmp_path / "two").manifest
    assert (one.classes, two.classes) == (("0", "1", "2"), ("a", "b", "c"))
    assert one.spec.shape == (channels or 1, 6, 5)
    images = by_key(tmp_path / "two")
    for row in range(20):
        np.testing.assert_array_equal(images[f"{row:08d}"], pixels[row].reshape(6, 5, -1))


def huge_png() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


def folder_case(prepare: Callable[[Path], Any], **options: Any) -> Callable[[Path], SourceConfig]:
    def make(folder: Path) -> SourceConfig:
        (folder / "in").mkdir()
        prepare(folder / "in")
        return FolderSource(path=str(folder / "in"), **options)

    return make


def npz_case(**arrays: Any) -> Callable[[Path], SourceConfig]:
    def make(folder: Path) -> SourceConfig:
        np.savez(folder / "in.npz", **arrays)
        return NpzSource(path=str(folder / "in.npz"))

    return make


def both(*prepare: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [each(folder) for each in prepare]


GOOD = np.zeros((4, 5, 5), np.uint8)
BAD: dict[str, tuple[Callable[[Path], SourceConfig], list[str]]] = {
    "missing folder": (lambda at: FolderSource(path=str(at / "nowhere")), ["nowhere", "no such folder"]),
    "empty folder": (folder_case(lambda at: None), ["no images found", ".png"]),
    "no images": (folder_case(lambda at: (at / "a.csv").write_text("x")), ["no images found", "1 .csv"]),
    "pipe": (folder_case(lambda at: os.mkfifo(at / "a.png")), ["a.png", "is not a regular file"]),
    "corrupt": (folder_case(lambda at: (at / "broken.png").write_bytes(b"\x89PNG\r\n")), ["broken.png"]),
    "sizes": (
        folder_case(both(lambda at: picture(at / "a.png"), lambda at: picture(at / "b.png", (9, 9)))),
        ["sizes differ", "12x10", "9x9", "at most 9"],
    ),
    "too small": (
        folder_case(lambda at: picture(at / "s.png"), size=11),
        ["s.png", "12x10", "requested size 11"],
    ),
    "stray": (
        folder_case(both(lambda at: picture(at / "s.png"), lambda at: picture(at / "cats" / "c.png"))),
        ["s.png", "subfolders"],
    ),
    "bomb": (folder_case(lambda at: (at / "bomb.png").write_bytes(huge_png())), ["bomb.png", "max_pixels"]),
    "no file": (lambda at: NpzSource(path=str(at / "no.npz")), ["no.npz", "no such file"]),
    "no arrays": (npz_case(pictures=GOOD), ["it holds pictures"]),
    "shape": (npz_case(x=np.zeros((4, 3, 5, 5), np.uint8)), ["(4, 3, 5, 5)", "(N, H, W, 3)"]),
    "type": (npz_case(x=GOOD.astype(np.float32)), ["float32", "uint8"]),
    "no rows": (npz_case(x=GOOD[:0]), ["no images found"]),
    "pickled": (npz_case(x=np.array([{"a": 1}], dtype=object)), ["x", "never loaded"]),
    "pickled labels": (npz_case(x=GOOD, y=np.array([None] * 4)), ["y", "never loaded"]),
    "negative label": (npz_case(x=GOOD, y=np.array([0, 1, -1, 0])), ["y[2]", "-1", "out of range"]),
    "label count": (npz_case(x=GOOD, y=np.arange(3)), ["3 labels", "4 images"]),
    "float labels": (npz_case(x=GOOD, y=np.ones(4)), ["float64", "integers"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    make, words = BAD[name]
    with pytest.raises(DataError) as caught:
        pack(make(tmp_path), tmp_path / "out" / "data")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_label_beyond_the_named_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=GOOD, y=np.array([0, 1, 2, 3]))
    with pytest.raises(DataError, match=r"y\[2\]: label 2 is out of range 0..1"):
        pack(NpzSource(path=str(tmp_path / "in.npz"), classes=("a", "b")), tmp_path / "out")


def test_not_an_npz(tmp_path: Path) -> None:
    (tmp_path / "in.npz").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        pack(str(tmp_path / "in.npz"), tmp_path / "out")


def packed_with_faults(tmp_path: Path, max_errors: int) -> PackReport:
    for number in range(6):
        picture(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"not a PNG")
    damaged = bytearray((tmp_path / "in" / "5.png").read_bytes())
    damaged[-60] ^= 0xFF  # inside the pixels: its header is good
    (tmp_path / "in" / "cut.png").write_bytes(damaged)
    source = FolderSource(path=str(tmp_path / "in"))
    return pack(source, tmp_path / "out", on_error="skip", max_errors=max_errors)


def test_skipping_is_reported_and_limited(tmp_path: Path) -> None:
    report = packed_with_faults(tmp_path, max_errors=2)
    assert report.manifest.samples == 6
    assert sorted(fault.key for fault in report.skipped) == ["broken.png", "cut.png"]
    with pytest.raises(DataError, match="more than max_errors=1"):
        packed_with_faults(tmp_path / "again", max_errors=1)


def test_only_regular_files_inside_the_folder_are_read(tmp_path: Path) -> None:
    """Links out of the folder are faults, also those of captions; pipes would be waited for, for ever."""
    folder, outside = tmp_path / "in", tmp_path / "outside"
    for place in (folder, outside):
        place.mkdir()
        picture(place / "good.png")
    (outside / "words.txt").write_text("secret")
    (folder / "inside.png").symlink_to(folder / "good.png")
    (folder / "linked.png").symlink_to(outside / "good.png")
    (folder / "folder").symlink_to(outside)
    os.mkfifo(folder / "pipe.png")
    for name, caption in (("said", "words.txt"), ("piped", None)):
        picture(folder / f"{name}.png")
        beside = folder / f"{name}.txt"
        os.mkfifo(beside) if caption is None else beside.symlink_to(outside / caption)
    report = pack(str(folder), tmp_path / "out", on_error="skip")
    assert sorted(by_key(tmp_path / "out")) == ["good", "inside"]
    assert {fault.key: fault.reason for fault in report.skipped} == {
        "linked.png": "is a link that leads out of the folder",
        "pipe.png": "is not a regular file",
        "said.png": "its caption said.txt is a link that leads out of the folder",
        "piped.png": "its caption piped.txt is not a regular file",
    }
    with pytest.raises(DataError, match=r"(linked|pipe)\.png"):
        pack(str(folder), tmp_path / "none")


def test_what_is_left_out_or_changed_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture(folder / "colour.png")
    picture(folder / "grey.png", mode="L")
    (folder / "grey.txt").write_text("a caption")
    for name in ("a.gif", "b.GIF", "notes.docx", "README", ".hidden"):
        (folder / name).write_bytes(b"")
    told: list[str] = []
    manifest = pack(str(folder), tmp_path / "out", note=told.append).manifest
    assert manifest.image.channels == 3
    assert told == [
        f"{folder}: left out files that are not images: 2 .gif, 1 .docx, 1 without an ending",
        "folder in: 1 of 2 images are grey; all are stored in colour (channels=1 stores all in grey)",
    ]
    told.clear()
    source = FolderSource(path=str(folder), channels=1)
    assert pack(source, tmp_path / "grey", note=told.append).manifest.image.channels == 1
    assert [line for line in told if "grey;" in line] == []


def test_a_place_that_exists_is_refused_and_replaced_only_when_asked(tmp_path: Path) -> None:
    pack("digits", tmp_path / "d")
    with pytest.raises(DataError, match="overwrite"):
        pack("digits", tmp_path / "d")
    assert pack("digits", tmp_path / "d", overwrite=True, shard_size=1000).manifest.shard_samples == (
        1000,
        797,
    )
    assert len(list((tmp_path / "d").iterdir())) == 5
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "final.tex").write_text("mine")
    with pytest.raises(DataError, match="not a packed data set"):
        pack("digits", tmp_path / "thesis", overwrite=True)


def test_an_interrupted_pack_leaves_no_data_set_and_goes_on_where_it_was(tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done >= 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack("digits", tmp_path / "d", shard_size=300, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [".d-packing"]
    report = pack("digits", tmp_path / "d", shard_size=300)
    assert report.kept == 3
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    pack("digits", tmp_path / "whole", shard_size=300)
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


def test_finished_shards_are_kept_only_where_they_are_what_is_wanted(tmp_path: Path) -> None:
    """Changed options, a changed shard and a changed source are each packed again."""
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "in.npz", x=rng.integers(0, 256, (40, 4, 4), dtype=np.uint8))
    source = NpzSource(path=str(tmp_path / "in.npz"))

    def interrupted(source: SourceConfig, dest: Path) -> Path:
        def stop(done: int, total: int | None) -> None:
            if done > 30:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            pack(source, dest, shard_size=10, progress=stop)
        return dest.parent / f".{dest.name}-packing" / "set"

    interrupted(source, tmp_path / "options")
    assert pack(source.model_copy(update={"format": "webp"}), tmp_path / "options", shard_size=10).kept == 0
    shards = interrupted(source, tmp_path / "damaged")
    first = min(shards.glob("*.tar"))
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    assert pack(source, tmp_path / "damaged", shard_size=10).kept == 2
    interrupted(source, tmp_path / "source")
    np.savez(tmp_path / "in.npz", x=rng.integers(0, 256, (40, 4, 4), dtype=np.uint8))
    assert pack(source, tmp_path / "source", shard_size=10).kept == 0
    pack(source, tmp_path / "fresh", shard_size=10)
    assert contents(tmp_path / "source") == contents(tmp_path / "fresh")


def test_verify_names_the_shard_and_what_differs(tmp_path: Path) -> None:
    manifest = pack("digits", tmp_path / "d", shard_size=900).manifest
    assert verify(tmp_path / "d").digest == manifest.digest
    shard = tmp_path / "d" / manifest.shards[1].name
    good = shard.read_bytes()
    shard.write_bytes(good[:-1000])
    for mode in ("auto", "size"):
        with pytest.raises(DataError, match=f"{shard.name}: truncated"):
            verify(tmp_path / "d", mode)  # type: ignore[arg-type]
    shard.write_bytes(good[:5000] + b"?" + good[5001:])
    verify(tmp_path / "d", "size")
    with pytest.raises(DataError, match=f"{shard.name}: its checksum"):
        verify(tmp_path / "d")
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}: missing"):
        verify(tmp_path / "d")
    with pytest.raises(DataError, match=r"no manifest\.json"):
        verify(tmp_path)


def test_an_index_of_other_bytes_is_noticed(tmp_path: Path) -> None:
    one = pack("digits", tmp_path / "one", shard_size=900).manifest
    files = sorted(path for path in (tmp_path / "one").iterdir() if path.suffix == ".arrow")
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(DataError, match="belongs to another"):
        index.load(tmp_path / "one", one)
    files[1].write_bytes(b"junk")
    with pytest.raises(DataError, match="damaged"):
        index.load_shard(str(tmp_path / "one"), one.shards[1])


def test_shards_with_two_images_or_a_wordy_class_are_refused(tmp_path: Path) -> None:
    for name, members in {"two.tar": ["a.png", "a.jpg"], "cls.tar": ["a.png", "a.cls"]}.items():
        with tarfile.open(tmp_path / name, "w") as archive:
            for member in members:
                info = tarfile.TarInfo(member)
                info.size = 3
                archive.addfile(info, io.BytesIO(b"cat"))
    with pytest.raises(DataError, match="a: wanted one image"):
        index.build(tmp_path, "two.tar")
    with pytest.raises(DataError, match="wanted a class number"):
        index.build(tmp_path, "cls.tar")


def test_settings_choose_a_source_by_kind() -> None:
    settings = DataSettings.model_validate(
        {"path": "x", "source": {"kind": "folder", "path": "p", "size": 8}}
    )
    assert settings.source == FolderSource(path="p", size=8)
    with pytest.raises(ValidationError):
        DataSettings.model_validate({"path": "x", "source": {"kind": "folder", "sise": 8}})
