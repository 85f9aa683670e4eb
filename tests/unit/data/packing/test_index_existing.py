"""Shards from anywhere: whatever a tar tries, its outcome is one fault or one error, and nothing else."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.data.format import index
from sfumato.data.format.faults import FaultLog
from sfumato.data.format.images import MAX_PIXELS
from sfumato.data.format.manifest import Manifest
from sfumato.data.format.tar import BLOCK, scan
from sfumato.data.packing.index_existing import IndexOptions, IndexReport, make_index
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.webdataset import WebDatasetSource
from sfumato.data.reading.local_reader import read_all
from sfumato.errors import DataError

Add = Callable[..., None]


def png(value: int = 7, size: tuple[int, int] = (6, 4)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (value, 2 * value % 256, 3)).save(out, "PNG")
    return out.getvalue()


def shard(
    folder: Path, fill: Callable[[Add, tarfile.TarFile], Any], name: str = "a.tar", form: int = 1
) -> Path:
    """A tar with the good samples `good` and `last`, and in between what `fill` adds."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w", format=form) as archive:

        def add(member: str, content: bytes = b"", **fields: Any) -> None:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))

        add(f"{name[0]}good.png", png(1))
        fill(add, archive)
        add(f"{name[0]}last.png", png(2))
    return folder / name


def indexed(folder: Path, **options: Any) -> IndexReport:
    return make_index(
        folder, IndexOptions(**options), FaultLog("skip", 10), max_pixels=MAX_PIXELS, overwrite=True
    )


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


def huge_npy() -> bytes:
    out = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 20, 3)}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue()


def huge(archive: tarfile.TarFile, name: str, size: int) -> None:
    """A member that takes no place on the disk: a hole in the file."""
    info = tarfile.TarInfo(name)
    info.size = size
    header, whole = info.tobuf(), size + -size % BLOCK
    assert archive.fileobj is not None
    archive.fileobj.write(header)
    archive.fileobj.seek(whole, os.SEEK_CUR)
    archive.offset += len(header) + whole


FAULTS: dict[str, tuple[Callable[[Add, tarfile.TarFile], Any], str]] = {
    "path up": (lambda add, _: add("../../etc/x.png", png()), "leads out"),
    "absolute path": (lambda add, _: add("/etc/x.png", png()), "leads out"),
    "backslashes": (lambda add, _: add("c\\x.png", png()), "leads out"),
    "control characters": (lambda add, _: add("x\ny.png", png()), "not text"),
    "no key": (lambda add, _: add(".png", png()), "no key"),
    "symbolic link": (
        lambda add, _: add("x.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "a symbolic link",
    ),
    "hard link": (lambda add, _: add("x.png", type=tarfile.LNKTYPE, linkname="agood.png"), "a hard link"),
    "device": (lambda add, _: add("x.png", type=tarfile.CHRTYPE), "a character device"),
    "pipe": (lambda add, _: add("x.png", type=tarfile.FIFOTYPE), "a named pipe"),
    "sparse file": (lambda add, _: add("x.png", png(), type=tarfile.GNUTYPE_SPARSE), "a sparse file"),
    "huge image": (lambda _, archive: huge(archive, "x.png", (1 << 28) + 1), "bytes, more than 268,435,456"),
    "huge caption": (
        lambda add, _: [add("x.png", png()), add("x.txt", b"a" * ((1 << 20) + 1))],
        "bytes, more than 1,048,576",
    ),
    "huge json": (
        lambda add, _: [add("x.png", png()), add("x.json", b" " * ((1 << 22) + 1))],
        "bytes, more than 4,194,304",
    ),
    "unknown type": (lambda add, _: add("x.png", type=b"Z"), "unknown type Z"),
    "zero bytes": (lambda add, _: add("x.png", b""), "0 bytes"),
    "same member twice": (lambda add, _: [add("x.png", png()), add("x.png", png(9))], "holds .png twice"),
    "same key again": (lambda add, _: add("agood.png", png(9)), "holds .png twice"),
    "same key later": (
        lambda add, _: [add("x.png", png()), add("agood.png", png(9))],
        "has appeared before",
    ),
    "bomb": (lambda add, _: add("x.png", bomb()), "max_pixels"),
    "npy bomb": (lambda add, _: add("x.npy", huge_npy()), "max_pixels"),
    "pickle alone": (lambda add, _: add("x.pkl", pickle.dumps(1)), "wanted one image"),
    "no image inside": (lambda add, _: add("x.png", b"GIF89a..."), "not an image"),
    "wordy class": (lambda add, _: [add("x.png", png()), add("x.cls", b"-1")], "wanted a class number"),
    "endless class": (lambda add, _: [add("x.png", png()), add("x.cls", b"1" * 5000)], "more than"),
    "deep json": (lambda add, _: [add("x.png", png()), add("x.json", b"[" * 100_000)], "json cannot be read"),
    "mixed sizes": (lambda add, _: add("x.png", png(3, (9, 9))), "9x9, where most"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_hostile_sample_is_one_fault_and_the_rest_is_read(name: str, tmp_path: Path) -> None:
    fill, words = FAULTS[name]
    shard(tmp_path / "d", fill)
    with pytest.raises(DataError, match=words):
        make_index(tmp_path / "d", IndexOptions(), FaultLog("fail", 0), max_pixels=MAX_PIXELS)
    assert not (tmp_path / "d" / "manifest.json").exists()
    report = indexed(tmp_path / "d")
    (fault,) = report.skipped
    assert "\n" not in str(fault)
    keys = index.load(tmp_path / "d", report.manifest)[0].keys.to_pylist()
    # Where the good sample's own name is used again right behind it, neither of the two can be meant.
    expected = {"same key again": ["alast"], "same key later": ["agood", "x", "alast"]}
    assert keys == expected.get(name, ["agood", "alast"])
    images = np.concatenate([columns["image"] for columns in read_all(tmp_path / "d")])
    assert len(images) == len(keys)
    assert (images[-1] == [2, 4, 3]).all()


def test_pickles_beside_an_image_are_counted_and_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    trap = pickle.dumps(Trap())
    shard(tmp_path / "d", lambda add, _: [add("x.png", png()), add("x.pkl", trap), add("x.latent.pth", trap)])
    report = indexed(tmp_path / "d")
    assert report.manifest.samples == 3
    assert report.ignored == {"latent.pth": 1, "pkl": 1}
    pack(WebDatasetSource(path=str(tmp_path / "d")), tmp_path / "out")
    assert not (tmp_path / "sprung").exists()


def test_a_key_of_two_shards_is_told_with_both(tmp_path: Path) -> None:
    shard(tmp_path / "d", lambda add, _: add("x.png", png()), "a.tar")
    shard(tmp_path / "d", lambda add, _: add("x.png", png()), "b.tar")
    report = indexed(tmp_path / "d")
    assert [(Path(fault.where).name, fault.key) for fault in report.skipped] == [("b.tar", "x")]
    assert "in a.tar" in report.skipped[0].reason
    assert report.manifest.shard_samples == (3, 2)


def damaged(data: bytes, at: int, new: bytes) -> bytes:
    """With other bytes in a header, whose checksum is made right again."""
    start = at // BLOCK * BLOCK
    block = bytearray(data[start : start + BLOCK])
    block[at - start : at - start + len(new)] = new
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:start] + bytes(block) + data[start + BLOCK :]


def test_tars_that_lie_end_in_one_error_and_never_in_a_loop(tmp_path: Path) -> None:
    path = shard(tmp_path / "d", lambda add, _: None)
    data = path.read_bytes()
    whole = [member.name for member in scan(io.BytesIO(data), len(data), "it")]
    assert whole == ["agood.png", "alast.png"]
    cases = {
        "no tar header": [damaged(data, 124, b"-0000001000\0"), damaged(data, 124, b"0000_1_0000\0")],
        "truncated": [
            damaged(data, 124, b"77777777777\0"),
            damaged(data, 124, b"\x80" + b"\x7f" * 11),
            data[: 2 * BLOCK],
            data[: 3 * BLOCK - 1],
            b"",
        ],
        "after the end mark": [data + data],
    }
    for words, tars in cases.items():
        for tar in tars:
            with pytest.raises(DataError, match=words):
                list(scan(io.BytesIO(tar), len(tar), "it"))


@pytest.mark.parametrize("cut", [100, BLOCK + 20, 3 * BLOCK, 0])  # 0: only the end mark is missing
def test_a_tar_that_is_cut_is_one_line_and_leaves_nothing(cut: int, tmp_path: Path) -> None:
    path = shard(tmp_path / "d", lambda add, _: add("x.png", png()))
    data = path.read_bytes()
    members = -(-len(data.rstrip(b"\0")) // BLOCK) * BLOCK
    path.write_bytes(data[: cut or members])
    with pytest.raises(DataError, match=r"a\.tar: truncated") as error:
        indexed(tmp_path / "d")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"a\.tar: truncated"):
        pack(WebDatasetSource(path=str(tmp_path / "d")), tmp_path / "out", on_error="skip")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a.tar"]


def test_odd_pax_headers(tmp_path: Path) -> None:
    def with_pax(headers: dict[str, str]) -> bytes:
        fill = lambda add, _: add("x.png", png(), pax_headers=headers)  # noqa: E731
        return shard(tmp_path / "d", fill, form=tarfile.PAX_FORMAT).read_bytes()

    for value in ("-1", "9" * 40, "1e3", "٣"):
        data = with_pax({"size": value})
        with pytest.raises(DataError, match=r"its size is|truncated|damaged"):
            list(scan(io.BytesIO(data), len(data), "it"))
    data = with_pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    problems = [member.problem for member in scan(io.BytesIO(data), len(data), "it")]
    assert problems == ["", "a sparse file", ""]
    data = with_pax({"comment": "\0" * 10 + "=" * 50})
    assert len(list(scan(io.BytesIO(data), len(data), "it"))) == 3
    with tarfile.open(
        tmp_path / "g.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"path": "y"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("x"))
    data = (tmp_path / "g.tar").read_bytes()
    with pytest.raises(DataError, match="global pax header"):
        list(scan(io.BytesIO(data), len(data), "it"))


def test_a_sparse_member_of_gnu_tar_is_stepped_over(tmp_path: Path) -> None:
    path = shard(tmp_path / "d", lambda add, _: add("x.png", png()))
    data = path.read_bytes()
    header = data.index(b"x.png\0") // BLOCK * BLOCK
    sparse = damaged(data, header + 156, b"S")
    found = [(member.name, member.problem) for member in scan(io.BytesIO(sparse), len(sparse), "it")]
    assert found == [("agood.png", ""), ("x.png", "a sparse file"), ("alast.png", "")]


def test_an_index_that_is_made_twice_needs_leave(tmp_path: Path) -> None:
    shard(tmp_path / "d", lambda add, _: None)
    first = indexed(tmp_path / "d").manifest
    with pytest.raises(DataError, match="already"):
        make_index(tmp_path / "d", IndexOptions(), FaultLog("fail", 0), max_pixels=MAX_PIXELS)
    assert Manifest.load(tmp_path / "d").digest == first.digest
