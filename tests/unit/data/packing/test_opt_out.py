"""Opt-out lists at packing and indexing, licences by sample, and finding an image in a set."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sfumato.data.format.faults import FaultLog
from sfumato.data.format.images import MAX_PIXELS
from sfumato.data.format.index import load
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.dedupe import print_of
from sfumato.data.packing.index_existing import IndexOptions, make_index
from sfumato.data.packing.opt_out import hex_of, read_lists
from sfumato.data.packing.pack import PackReport, pack
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.data.tracing import Query, find
from sfumato.errors import DataError

Command = Callable[..., tuple[int, str, str]]
SIDE = 48


def picture(seed: int, side: int = SIDE) -> Image.Image:
    """A smooth coloured picture: noise of 6 x 6, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def as_bytes(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures with metadata: addresses, and licences for six of them."""
    place = tmp_path / "in"
    place.mkdir()
    for n in range(8):
        picture(n).save(place / f"p{n}.png")
        meta = {"url": f"https://{'art.' if n % 2 else ''}Example.com/set/{n}.png"}
        if n < 6:
            meta["license"] = "CC BY 4.0" if n < 4 else "CC0"
        (place / f"p{n}.json").write_text(json.dumps(meta))
    return place


def shards_of(folder: Path, tar: Path) -> Path:
    """The same pictures as one tar, each with its metadata."""
    tar.parent.mkdir(exist_ok=True)
    with tarfile.open(tar, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return tar.parent


def packed_without(folder: Path, dest: Path, *lines: str) -> tuple[PackReport, set[str]]:
    """The report, and the keys that are left."""
    from sfumato.data.packing.sources.webdataset import WebDatasetSource

    place = dest.parent / "list.txt"
    place.write_text("\n".join(["# a list", *lines, ""]))
    shards = shards_of(folder, dest.parent / "shards" / "a.tar")
    report = pack(WebDatasetSource(path=str(shards), opt_out=(str(place),)), dest)
    return report, keys_of(dest)


def keys_of(data: Path) -> set[str]:
    return {key for part in load(str(data), Manifest.load(data)) for key in part.keys.to_pylist()}


EVERY = {f"p{n}" for n in range(8)}


@pytest.mark.parametrize(
    ("line", "gone", "reason"),
    [
        ("key p3", {"p3"}, "key"),
        ("key\tp3  # by request", {"p3"}, "key"),
        ("key p[3]", set(), "key"),
        ("key p?", EVERY - {"p1"}, "key"),
        ("url https://example.com/set/2.*", {"p2"}, "url"),
        ("url HTTPS://EXAMPLE.com/set/2.png", {"p2"}, "url"),
        ("url art.example.com", {"p1", "p3", "p5", "p7"}, "url"),
        ("url ample.com", set(), "url"),
        ("url https://example.com/SET/2.png", set(), "url"),
    ],
)
def test_an_entry_leaves_out_what_it_names_and_nothing_else(
    folder: Path, tmp_path: Path, line: str, gone: set[str], reason: str
) -> None:
    if line == "key p?":
        (folder / "p1.png").rename(folder / "other.png")
        (folder / "p1.json").rename(folder / "other.json")
    report, left = packed_without(folder, tmp_path / "out", line)
    assert left == {"other" if key == "p1" and line == "key p?" else key for key in EVERY - gone}
    noted = report.manifest.left_out
    assert noted is not None and noted.counts == ({reason: len(gone)} if gone else {})
    content = (tmp_path / "list.txt").read_bytes()
    assert noted.lists[0].sha256 == hashlib.sha256(content).hexdigest() and noted.lists[0].entries == 1


def test_checksums_and_hashes_find_the_file_and_its_copies(folder: Path, tmp_path: Path) -> None:
    sha = hashlib.sha256((folder / "p0.png").read_bytes()).hexdigest()
    copy = Image.open(io.BytesIO(as_bytes(picture(5, 120), "JPEG", quality=60)))
    report, left = packed_without(
        folder, tmp_path / "out", f"sha256 {sha.upper()}", f"phash {hex_of(print_of(copy))}"
    )
    assert left == EVERY - {"p0", "p5"}
    assert report.manifest.left_out is not None
    assert report.manifest.left_out.counts == {"sha256": 1, "phash": 1}
    assert dict(report.opted_out) == {"a.tar: p0": "sha256", "a.tar: p5": "phash"}


def test_indexing_honours_the_same_lists_and_counts_licences(folder: Path, tmp_path: Path) -> None:
    shards = shards_of(folder, tmp_path / "shards" / "a.tar")
    place = tmp_path / "list.txt"
    place.write_text(f"key p0\nphash {hex_of(print_of(picture(5)))}\nurl https://example.com/set/6*\n")
    options = IndexOptions(opt_out=(str(place),))
    report = make_index(shards, options, FaultLog("fail", 0), max_pixels=MAX_PIXELS)
    assert keys_of(shards) == EVERY - {"p0", "p5", "p6"}
    assert report.manifest.left_out is not None
    assert report.manifest.left_out.counts == {"key": 1, "phash": 1, "url": 1}
    assert report.manifest.licences == {"CC BY 4.0": 3, "": 1, "CC0": 1}
    assert Manifest.load(shards) == report.manifest


def test_licences_are_counted_and_sets_without_any_stay_as_they_were(folder: Path, tmp_path: Path) -> None:
    _, _ = packed_without(folder, tmp_path / "out", "key p7")
    assert Manifest.load(tmp_path / "out").licences == {"CC BY 4.0": 4, "CC0": 2, "": 1}
    for path in folder.glob("*.json"):
        path.unlink()
    pack(FolderSource(path=str(folder)), tmp_path / "plain")
    written = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    assert "licences" not in written and "left_out" not in written  # which older versions would refuse


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no entries"),
        ("name x", "'name' is none of key, sha256, phash, url"),
        ("sha256 abc", "wanted 64 hex digits"),
        ("phash 12", "wanted 16 hex digits"),
        ("phash 0123456789abcdef/40", "at most 16 of 64 bits"),
        ("key *", "would leave out everything"),
        ("url *://*", "would leave out everything"),
        ("key", "key without a value"),
    ],
)
def test_a_list_that_says_something_else_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    place = tmp_path / "list.txt"
    place.write_text(f"# comment\n{text}\n")
    with pytest.raises(DataError, match=said):
        read_lists([str(place)])
    with pytest.raises(DataError, match="no such file"):
        read_lists([str(tmp_path / "none.txt")])


def test_lists_that_leave_nothing_and_addresses_that_are_nowhere_are_said(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="leave none of 8 images"):
        packed_without(folder, tmp_path / "out", "key p*")
    for path in folder.glob("*.json"):
        path.unlink()
    place = tmp_path / "list.txt"
    place.write_text("url example.com\n")
    notes: list[str] = []
    pack(FolderSource(path=str(folder), opt_out=(str(place),)), tmp_path / "out", note=notes.append)
    assert any("no sample has one in its metadata" in note for note in notes)


def test_copies_are_found_through_resizing_cropping_mirroring_and_jpeg(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "out"
    wide = ImageOps.expand(picture(60, 96), (40, 0), fill=(10, 200, 30))
    wide.save(folder / "wide.png")
    pack(FolderSource(path=str(folder), size=32, val=0.0), data)
    queries = {
        "p2": as_bytes(picture(2, 128), "JPEG", quality=70),
        "p3": as_bytes(ImageOps.mirror(picture(3))),
        "wide": as_bytes(wide.resize((220, 120))),
    }
    for key, content in queries.items():
        (tmp_path / "query").write_bytes(content)
        found, looked = find(Query.of(tmp_path / "query"), str(data), bits=6)
        assert looked == 9 and found and found[0].key == key
        assert not found[0].same_pixels
    found, _ = find(Query.of(folder / "wide.png"), str(data), bits=0)
    assert found[0].key == "wide" and found[0].same_pixels, "as packing stores it"
    (tmp_path / "query").write_bytes(as_bytes(picture(99)))
    assert find(Query.of(tmp_path / "query"), str(data), bits=6)[0] == []


def test_the_command_says_where_it_is_by_its_exit_status_too(
    folder: Path, tmp_path: Path, sfumato_here: Command
) -> None:
    data = str(tmp_path / "out")
    status, out, error = sfumato_here(
        "pack", str(folder), data, "--left-out", str(tmp_path / "left.jsonl"), "--deduplicate", "0", "--json"
    )
    assert status == 0, error
    status, out, _ = sfumato_here("data", "trace", str(folder / "p4.png"), data, "--json")
    (match,) = json.loads(out)["found"]
    assert status == 0 and match["same_pixels"] and match["key"] == "p4" and match["bits"] == 0
    picture(99).save(tmp_path / "other.png")
    status, out, _ = sfumato_here("data", "trace", str(tmp_path / "other.png"), data)
    assert status == 1 and "not among 8 images" in out
    status, out, _ = sfumato_here("data", "trace", str(folder / "p4.png"))
    assert status == 0 and out.splitlines()[0].startswith("sha256 ")
    place = tmp_path / "list.txt"
    place.write_text(out)  # as it was printed
    status, out, error = sfumato_here(
        "pack", str(folder), data, "--opt-out", str(place), "--overwrite", "--json", "--dedupe", "2",
        "--left-out", str(tmp_path / "left.jsonl"),
    )  # fmt: skip
    assert status == 0 and json.loads(out)["opted_out"] == [{"left_out": "p4.png", "reason": "sha256"}], error
    rows = [json.loads(line) for line in (tmp_path / "left.jsonl").read_text().splitlines()]
    assert {"left_out": "p4.png", "reason": "sha256"} in rows
    status, _, error = sfumato_here("data", "trace", str(place), data)
    assert status == 2 and "Traceback" not in error
