"""Tar files: Python's `tarfile` is the reference for the writer and for the scan."""

from __future__ import annotations

import io
import tarfile

import pytest

from sfumato.data.format.tar import BLOCK, TarWriter, scan
from sfumato.errors import DataError

NAMES = ["a.png", "folder/b.cls", "x" * 100, "y" * 101, "long/" * 60 + "z.png", "größe/ü.txt", "猫.png"]


def written() -> tuple[bytes, dict[str, bytes]]:
    content = {name: bytes([number]) * (number * 300) for number, name in enumerate(NAMES)}
    out = io.BytesIO()
    writer = TarWriter(out)
    for name, data in content.items():
        writer.add(name, data)
    writer.finish()
    assert writer.bytes == len(out.getvalue())
    return out.getvalue(), content


def scanned(data: bytes) -> dict[str, bytes]:
    return {m.name: data[m.offset : m.offset + m.size] for m in scan(io.BytesIO(data), len(data), "it")}


def test_tarfile_reads_what_is_written() -> None:
    data, content = written()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        read = {}
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            read[member.name] = file.read()
    assert read == content
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
    assert scanned(data) == content
    assert written()[0] == data


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_scan_reads_every_format_of_tarfile(form: int) -> None:
    names = NAMES if form != tarfile.USTAR_FORMAT else [*NAMES[:2], "p" * 90 + "/" + "q" * 90]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(name), 1.5
            archive.addfile(info, io.BytesIO(name.encode()[: len(name)]))
    assert scanned(out.getvalue()) == {name: name.encode()[: len(name)] for name in names}


def test_damage_is_told() -> None:
    data, _ = written()
    with pytest.raises(DataError, match="truncated"):
        scanned(data[: 3 * BLOCK + 100])
    with pytest.raises(DataError, match="truncated"):
        scanned(data[: 2 * BLOCK + 7])
    with pytest.raises(DataError, match="no tar header at byte 0"):
        scanned(b"\x01" + data[1:])
    with pytest.raises(DataError, match="no tar header"):
        scanned(bytes(range(256)) * 8)
