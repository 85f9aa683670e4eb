"""Opt-out lists: which samples must not be trained on, by key, by checksum, by look or by address.

A list is a text file with one entry a line, a kind and a value; `#` begins a comment:

    key     holiday/img_0042            the sample's key, or its name in the source; * and ? are wildcards
    sha256  9f86d081884c7d659a2f...     of the file's bytes, or of the pixels where there is no file
    phash   d1c48b2e6b94d23b            perceptual hash, 16 hex digits; at most 4 bits may differ
    phash   d1c48b2e6b94d23b/8          the same with its own number of bits
    url     https://example.com/art/*   address in the metadata field `url`; * and ? are wildcards
    url     example.com                 everything from this host and its subdomains

`sfumato data trace IMAGE` prints the entries of an image. The hash is that of `dedupe.py`. It finds copies at
other sizes and qualities; a few strangers may share it, flat pictures above all, and are left out too.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from sfumato.data.format.manifest import LeftOut, OptOutList
from sfumato.data.packing.dedupe import BITS, Print
from sfumato.data.packing.resizing import Encoded
from sfumato.data.storage.filesystems import above
from sfumato.data.storage.read import read_bytes, size_of
from sfumato.errors import DataError

PRINT_BITS = 4
"""Bits in which a picture may differ from a hash on a list without a number of its own."""
LICENCE_FIELDS = ("license", "licence", "rights")
NO_URLS = (
    "the opt-out lists name addresses, and no sample has one in its metadata (url): `keep=url` keeps a "
    "table's column"
)
"""What the user should know where addresses could not be honoured."""
_MOST_LICENCES = 1_000
URL_FIELDS = ("url", "URL", "image_url")
KINDS = ("key", "sha256", "phash", "url")
_LARGEST = 16
_WILD = re.compile(r"[*?]")


@dataclass(frozen=True)
class OptOut:
    """All entries of some lists. Sent to the tasks that look at samples."""

    lists: tuple[OptOutList, ...] = ()
    keys: frozenset[str] = frozenset()
    key_patterns: tuple[str, ...] = ()
    sha256: frozenset[str] = frozenset()
    prints: tuple[tuple[int, int], ...] = ()
    """Hash, and the most bits that may differ."""
    hosts: frozenset[str] = frozenset()
    url_patterns: tuple[str, ...] = ()

    @property
    def reads_urls(self) -> bool:
        return bool(self.hosts or self.url_patterns)

    def reason(
        self, names: Iterable[str], image: Encoded, meta: Mapping[str, Any] | None, seen: Print | None
    ) -> str | None:
        """The kind of the first entry that names a sample; None if none does.

        `names` are its key and whatever else it is called; `seen` is its fingerprint, needed if there are
        `prints`.
        """
        if any(self._key(name) for name in names):
            return "key"
        if self.sha256 and sha256_of(image) in self.sha256:
            return "sha256"
        if (url := url_of(meta)) is not None and self._url(url):
            return "url"
        if self.prints:
            assert seen is not None, "a fingerprint is taken where lists have some"
            if any((seen.bits ^ bits).bit_count() <= limit for bits, limit in self.prints):
                return "phash"
        return None

    def _key(self, name: str) -> bool:
        return name in self.keys or any(fnmatch.fnmatchcase(name, p) for p in self.key_patterns)

    def _url(self, url: str) -> bool:
        host = (urlsplit(url).hostname or "").lower()
        parts = host.split(".")
        if any(".".join(parts[n:]) in self.hosts for n in range(len(parts))):
            return True
        return any(fnmatch.fnmatchcase(_plain(url), pattern) for pattern in self.url_patterns)


NOTHING = OptOut()


@dataclass
class Removed:
    """What was left out so far: by reason, and which samples."""

    counts: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason."""

    def add(self, name: str, reason: str) -> None:
        self.counts[reason] += 1
        self.samples.append((name, reason))

    def record(
        self, opt_out: OptOut, duplicates: int = 0, dedupe: int | None = None, filtered: int | None = None
    ) -> LeftOut | None:
        """The entry of the manifest; None where nothing was asked for. `filtered`: None without a filter."""
        if not opt_out.lists and dedupe is None and filtered is None:
            return None
        counts = {kind: self.counts[kind] for kind in KINDS if self.counts[kind]}
        if duplicates:
            counts["near duplicate"] = duplicates
        if filtered:
            counts["filter"] = filtered
        return LeftOut(lists=opt_out.lists, counts=counts, dedupe=dedupe)


def read_lists(places: Sequence[str]) -> OptOut:
    """The entries of lists at these paths or URIs. Raises DataError for the first that cannot be read."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    lists = []
    for place in places:
        folder, name = above(place) if "://" in place else (str(Path(place).parent), Path(place).name)
        if size_of(folder, name) is None:
            raise DataError(f"opt-out list {place}: no such file")
        content = read_bytes(folder, name)
        entries = _entries(place, content)
        for kind, value in entries:
            found[kind].append(value)
        digest = hashlib.sha256(content).hexdigest()
        lists.append(OptOutList(name=name, sha256=digest, entries=len(entries)))
    urls = found["url"]
    return OptOut(
        lists=tuple(lists),
        keys=frozenset(key for key in found["key"] if not _WILD.search(key)),
        key_patterns=tuple(sorted({key for key in found["key"] if _WILD.search(key)})),
        sha256=frozenset(value.lower() for value in found["sha256"]),
        prints=tuple(sorted({_print(value) for value in found["phash"]})),
        hosts=frozenset(url.lower() for url in urls if _is_host(url)),
        url_patterns=tuple(sorted({_plain(url) for url in urls if not _is_host(url)})),
    )


def sha256_of(image: Encoded) -> str:
    """Checksum of a file or its bytes, or of pixels uint8 [H, W, C] where there is no file."""
    if isinstance(image, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    return hashlib.sha256(image if isinstance(image, bytes) else image.read_bytes()).hexdigest()


def url_of(meta: Mapping[str, Any] | None) -> str | None:
    """The address in a sample's metadata."""
    values = ((meta or {}).get(name) for name in URL_FIELDS)
    return next((value for value in values if isinstance(value, str) and value), None)


def licence_of(meta: Mapping[str, Any] | None) -> str:
    """The licence in a sample's metadata, on one line; empty without one."""
    values = ((meta or {}).get(name) for name in LICENCE_FIELDS)
    found = next((value for value in values if isinstance(value, str | int) and str(value).strip()), "")
    return " ".join(str(found).split())[:200]


def licences_of(counts: Counter[str]) -> dict[str, int]:
    """Samples by licence, the most frequent first; empty if no sample has one.

    Raises DataError for more licences than could be terms of use.
    """
    if set(counts) <= {""}:
        return {}
    if len(counts) > _MOST_LICENCES:
        raise DataError(
            f"the samples' metadata has {len(counts):,} different licences: the field holds something else"
        )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def hex_of(found: Print) -> str:
    """A fingerprint's hash as lists have it."""
    return f"{found.bits:016x}"


def _entries(place: str, content: bytes) -> list[tuple[str, str]]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"opt-out list {place}: not UTF-8 text") from error
    found = []
    for number, line in enumerate(lines, start=1):
        text = line.split(" #")[0].strip() if not line.lstrip().startswith("#") else ""
        if not text:
            continue
        kind, _, value = text.partition(" ")
        kind, _, tabbed = kind.partition("\t")
        value = (tabbed + " " + value).strip() if tabbed else value.strip()
        if problem := _problem(kind, value):
            raise DataError(f"opt-out list {place}, line {number}: {problem}")
        found.append((kind, value))
    if not found:
        raise DataError(f"opt-out list {place}: no entries; a line is, for example, `key holiday/img_0042`")
    return found


def _problem(kind: str, value: str) -> str:
    if kind not in KINDS:
        return f"{kind[:40]!r} is none of {', '.join(KINDS)}; a line is a kind and a value"
    if not value:
        return f"{kind} without a value"
    if kind in ("key", "url"):
        return "" if value.strip("*?/: ") else f"{kind} {value!r} would leave out everything"
    if kind == "sha256":
        good = re.fullmatch(r"[0-9a-fA-F]{64}", value)
        return "" if good else f"sha256 {value[:20]!r}: wanted 64 hex digits"
    shown = re.fullmatch(r"[0-9a-fA-F]{16}(?:/(\d{1,2}))?", value)
    if shown is None:
        return f"phash {value[:24]!r}: wanted 16 hex digits, perhaps /BITS"
    far = shown[1] is not None and int(shown[1]) > _LARGEST
    return f"phash {value}: at most {_LARGEST} of {BITS} bits may differ" if far else ""


def _print(value: str) -> tuple[int, int]:
    bits, _, limit = value.partition("/")
    return int(bits, 16), int(limit or PRINT_BITS)


def _is_host(url: str) -> bool:
    return "/" not in url and not _WILD.search(url)


def _plain(url: str) -> str:
    """Scheme and host in lower case; the rest as it is, without a fragment."""
    scheme, colons, rest = url.partition("://")
    if not colons:
        return url
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.lower()}{slash}{path}".split("#")[0]
