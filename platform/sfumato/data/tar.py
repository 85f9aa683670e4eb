"""Tar files with fixed bytes, and a header scan that is some ten times faster than `tarfile`.

The writer makes POSIX ustar (IEEE Std 1003.1) with all variable fields zero; a name that ustar cannot
hold gets a pax header. The scan also reads GNU long names, sizes in base 256 and v7 archives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

from sfumato.errors import DataError

BLOCK = 512
_NAME_BYTES = 100
_REGULAR = (b"0", b"\0", b"7")
_LONGEST_EXTENSION = 1 << 20


class Member(NamedTuple):
    """A regular file in a tar: its name, where its content starts, and how long that is."""

    name: str
    offset: int
    size: int


class RandomAccess(Protocol):
    """What the scan needs of a file; both Python's and pyarrow's files have it."""

    def seek(self, position: int, /) -> int | None: ...
    def read(self, nbytes: int, /) -> bytes: ...


class TarWriter:
    """Appends members to a file and digests what it writes. The caller opens and closes the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, content: bytes) -> None:
        raw = name.encode()
        if len(raw) > _NAME_BYTES or not name.isascii():
            record = _pax_record("path", name)
            self._write(_header(b"pax/path", len(record), b"x") + _padded(record))
            raw = hashlib.sha256(raw).hexdigest().encode()  # for readers that do not know pax
        self._write(_header(raw, len(content), b"0") + _padded(content))

    def finish(self) -> str:
        """Write the end of the archive and return the sha256 of the whole."""
        self._write(bytes(2 * BLOCK))
        return self._sha256.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def _pax_record(key: str, value: str) -> bytes:
    """`LENGTH key=value\\n`, where LENGTH counts its own digits."""
    rest = len(f" {key}={value}\n".encode())
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return f"{length} {key}={value}\n".encode()


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    if size >= 8**11:
        raise DataError(f"{name.decode()}: {size:,} bytes is more than a tar member can hold")
    numbers = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"%011o\0" % 0
    head = name.ljust(_NAME_BYTES, b"\0") + numbers
    tail = kind + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2
    tail = tail.ljust(BLOCK - len(head) - 8, b"\0")
    checksum = b"%06o\0 " % (sum(head) + sum(tail) + 8 * ord(" "))
    return head + checksum + tail


def scan(file: RandomAccess, total: int, where: str) -> Iterator[Member]:
    """The regular files of a tar of `total` bytes, in order, reading headers alone.

    Raises DataError (naming `where`) for a header that is damaged or a member that ends after the file.
    """
    offset, name, size_override = 0, None, None
    while offset + BLOCK <= total:
        file.seek(offset)
        header = file.read(BLOCK)
        if not header.strip(b"\0"):
            return
        size = _number(header[124:136], header, where, offset)
        kind = header[156:157]
        size = size_override if size_override is not None and kind in _REGULAR else size
        start, offset = offset + BLOCK, offset + BLOCK + size + -size % BLOCK
        if start + size > total:
            raise DataError(f"{where}: truncated: a member needs {start + size:,} bytes of {total:,}")
        if kind in (b"x", b"L"):
            if size > _LONGEST_EXTENSION:
                raise DataError(f"{where}: the name at byte {start:,} has {size:,} bytes")
            content = file.read(size)
            if kind == b"L":
                name = _text(content)
            else:
                name, size_override = _pax(content, name)
            continue
        if kind in _REGULAR:
            yield Member(name if name is not None else _ustar_name(header), start, size)
        name = size_override = None
    if offset != total:
        raise DataError(f"{where}: truncated: {total:,} bytes end inside a header")


def _number(field: bytes, header: bytes, where: str, offset: int) -> int:
    """A member's size, after the header's own checksum was found right."""
    try:
        said = int(header[148:156].rstrip(b"\0 ") or b"-1", 8)
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != said:
            raise ValueError
        if field[0] & 0x80:
            return int.from_bytes(field[1:], "big")
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise DataError(f"{where}: no tar header at byte {offset:,}: damaged, or not a tar") from None


def _ustar_name(header: bytes) -> str:
    name = _text(header[:_NAME_BYTES])
    if header[257:263] == b"ustar\0":  # POSIX; GNU keeps other things where the prefix is
        prefix = _text(header[345:500])
        return f"{prefix}/{name}" if prefix else name
    return name


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax(content: bytes, name: str | None) -> tuple[str | None, int | None]:
    """`path` and `size` of a pax extended header."""
    size, rest = None, content
    while rest.strip(b"\0"):
        head, _, _ = rest.partition(b" ")
        length = int(head) if head.isdigit() else 0
        if not len(head) < length <= len(rest):
            break  # damaged: what was read so far stands, and the name will not match anything
        key, _, value = rest[len(head) + 1 : length - 1].partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size" and value.isdigit():
            size = int(value)
        rest = rest[length:]
    return name, size
