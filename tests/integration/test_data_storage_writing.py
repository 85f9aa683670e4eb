"""Data sets written to a real S3 server: packed, indexed, looked at, interrupted, replaced."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sfumato import recipe
from sfumato.cli import app
from sfumato.data.format import index
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing import remote_staging
from sfumato.data.packing.download import fetched
from sfumato.data.packing.pack import pack
from sfumato.data.packing.recognition import kind_of, source_named
from sfumato.data.packing.sources.digits import DigitsSource
from sfumato.data.packing.tasks import T, Task
from sfumato.data.storage.filesystems import above, below
from sfumato.data.storage.read import local_copy, read_bytes
from sfumato.data.storage.write import entries, names_in, upload, write_bytes
from sfumato.errors import DataError
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.session import packed


class Server(Protocol):
    endpoint: str
    bucket: str
    environment: dict[str, str]


@pytest.fixture(autouse=True)
def credentials(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def place(s3_server: Server, request: pytest.FixtureRequest) -> str:
    """A URI of the test's own."""
    return f"s3://{s3_server.bucket}/writing/{request.node.name}"


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


def content(place: str | Path) -> dict[str, bytes]:
    """Every file below a folder or URI, by its name there."""
    if "://" not in str(place):
        root = Path(place)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    files = [info.path for info in entries(str(place)) if info.is_file]
    names = [path.split(str(place).removeprefix("s3://"))[1].lstrip("/") for path in files]
    return {name: read_bytes(str(place), name) for name in names}


def copy(folder: Path, place: str) -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            upload(place, str(path.relative_to(folder)), path)
    return place


class _Stops:
    """A runner that is interrupted after a few tasks."""

    def __init__(self, after: int) -> None:
        self._after = after

    def __call__(self, tasks: Sequence[Task[T]], advance: Callable[[int], None]) -> Iterator[T]:
        for task in islice(tasks, self._after):
            yield next(item for item in task() if not isinstance(item, int))  # type: ignore[misc]
        raise KeyboardInterrupt


def test_packed_there_is_packed_here(place: str, tmp_path: Path) -> None:
    status, said = call(
        *("pack", "digits", place, "--val", "0.25", "--shard-size", "700", "--workers", "1", "--json")
    )
    assert status == 0, said
    pack(DigitsSource(val=0.25), tmp_path / "d", shard_size=700)
    assert content(place) == content(tmp_path / "d")
    report = json.loads(said)
    assert report["folder"] == place
    assert report["splits"]["val"]["folder"] == f"{place}/val"
    for command in ("inspect", "verify"):
        status, said = call("data", command, f"{place}/train", "--workers", "1", "--json")
        assert status == 0, said
    assert json.loads(said)["bad"] == []
    assert call("pack", "digits", place, "--workers", "1")[0] != 0  # it is there already


def test_verify_finds_what_is_damaged_there(place: str) -> None:
    manifest = pack("digits", place, shard_size=600).manifest
    name = manifest.shards[1].name
    data = bytearray(read_bytes(place, name))
    rows = index.load_shard(place, manifest.shards[1])
    data[int(rows.offsets[5]) : int(rows.offsets[5]) + 8] = b"no image"
    write_bytes(place, name, bytes(data))
    status, said = call("data", "verify", place, "--workers", "1", "--json")
    bad = {(item["shard"], item["key"]) for item in json.loads(said)["bad"]}
    assert (status, bad) == (1, {(name, ""), (name, rows.keys[5].as_py())})


def test_an_interrupted_pack_goes_on(place: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack("digits", place, shard_size=400, run=_Stops(3))
    assert not Manifest.exists(place)
    _, second, _ = sorted(name for name in names_in(place) if name.endswith(".tar"))
    write_bytes(place, second, read_bytes(place, second)[:-512])  # not what its record says
    assert pack("digits", place, shard_size=400).kept == 2
    pack("digits", tmp_path / "d", shard_size=400)
    assert content(place) == content(tmp_path / "d")


def test_an_overwritten_set_leaves_nothing_behind(place: str, tmp_path: Path) -> None:
    pack("digits", place, shard_size=400)
    with pytest.raises(DataError, match="already holds a data set"):
        pack("digits", place, shard_size=1000)
    with pytest.raises(DataError, match="no such folder"):
        pack(str(tmp_path / "nowhere"), place, overwrite=True)
    assert Manifest.load(place).samples == 1797, "what cannot be packed replaces nothing"
    with pytest.raises(KeyboardInterrupt):
        pack("digits", place, shard_size=1000, overwrite=True, run=_Stops(1))
    assert not Manifest.exists(place)
    pack("digits", place, shard_size=1000)
    pack("digits", tmp_path / "d", shard_size=1000)
    assert content(place) == content(tmp_path / "d")


def test_places_that_are_taken_or_missing(place: str, s3_server: Server) -> None:
    write_bytes(place, "thesis.txt", b"mine")
    with pytest.raises(DataError, match="is not a packed data set"):
        pack("digits", place, overwrite=True)
    assert content(place) == {"thesis.txt": b"mine"}
    with pytest.raises(DataError, match="no bucket 'nowhere'"):
        pack("digits", "s3://nowhere/x")
    with pytest.raises(DataError, match="another process has begun to pack"):
        pack("digits", f"{place}/two", shard_size=400, run=_Rival(f"{place}/two"))
    assert not Manifest.exists(f"{place}/two")


class _Rival(_Stops):
    """Another process claims the place while a shard is packed."""

    def __init__(self, place: str) -> None:
        super().__init__(2)
        self._place = place

    def __call__(self, tasks: Sequence[Task[T]], advance: Callable[[int], None]) -> Iterator[T]:
        write_bytes(self._place, remote_staging._CLAIM, b"rival")
        return super().__call__(tasks, advance)


def pictures(folder: Path) -> Path:
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(5):
            pixels = np.full((9, 7, 3), 20 * number + len(label), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
        (folder / label / "0.txt").write_text(f"a {label}")
    return folder


def tars(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        with tarfile.open(folder / f"part-{number}.tar", "w") as archive:
            for row in range(4):
                out = io.BytesIO()
                Image.new("RGB", (6, 4), (number, row, 7)).save(out, "PNG")
                members = {"png": out.getvalue(), "cls": b"%d" % (row % 2), "txt": b"caption"}
                for name, data in members.items():
                    info = tarfile.TarInfo(f"{number}{row}.{name}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return folder


def test_sources_are_taken_from_there(place: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(60, dtype=np.uint8).reshape(5, 3, 4), y=np.arange(5))
    upload(place, "a.npz", tmp_path / "a.npz")
    (tmp_path / "list.csv").write_text("file,label\ncat/1.png,tabby\ndog/2.png,hound\n")
    sources = {
        pictures(tmp_path / "pets"): (copy(tmp_path / "pets", f"{place}/pets"), "folder"),
        tars(tmp_path / "tars"): (copy(tmp_path / "tars", f"{place}/tars"), "webdataset"),
        tmp_path / "a.npz": (f"{place}/a.npz", "npz"),
    }
    for number, (here, (there, kind)) in enumerate(sources.items()):
        assert kind_of(there) == kind_of(str(here)) == kind
        near = pack(str(here), tmp_path / f"near{number}")
        far = pack(there, tmp_path / f"far{number}")
        assert far.manifest == near.manifest
        assert content(tmp_path / f"far{number}") == content(tmp_path / f"near{number}")
    with pytest.raises(DataError, match="no such file or folder"):
        pack(source_named(f"{place}/nothing"), tmp_path / "x")


def test_fetched_again_only_what_has_changed_is_read(place: str, tmp_path: Path) -> None:
    copy(pictures(tmp_path / "pets"), f"{place}/pets")
    time.sleep(2.5)  # what is younger is not trusted, see below
    once = fetched(f"{place}/pets", tmp_path / "copy")
    times = {path: path.stat().st_ctime_ns for path in once.rglob("*.png")}
    upload(f"{place}/pets", "cat/0.png", tmp_path / "pets" / "dog" / "1.png")
    fetched(f"{place}/pets", tmp_path / "copy")
    changed = [path for path in once.rglob("*.png") if path.stat().st_ctime_ns != times[path]]
    assert [path.relative_to(once) for path in changed] == [Path("cat/0.png")]


def test_a_change_within_the_second_is_seen(place: str, tmp_path: Path) -> None:
    """The times that S3 tells are whole seconds: size and time alone are the same for both."""
    for text in (b"first", b"other", b"third"):
        write_bytes(place, "a.txt", text)
        assert (fetched(place, tmp_path) / "a.txt").read_bytes() == text


def test_an_index_is_made_where_the_tars_are(place: str, tmp_path: Path) -> None:
    folder = tars(tmp_path / "tars")
    there = copy(folder, f"{place}/tars")
    arguments = ("--classes", "even,odd", "--workers", "1", "--json")
    for where in (str(folder), there):
        status, said = call("data", "index", where, *arguments)
        assert status == 0, said
    assert content(there) == content(folder)
    assert Manifest.load(there).classes == ("even", "odd")
    with pytest.raises(DataError, match=r"has a manifest\.json already"):
        _index(there)
    with pytest.raises(DataError, match="object storage does not have"):
        _index(there, dest=str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"no file \*\.tar there"):
        _index(f"{place}/none")


def _index(folder: str, **options: Any) -> None:
    from sfumato.data.format.faults import FaultLog
    from sfumato.data.packing.index_existing import IndexOptions, make_index

    make_index(folder, IndexOptions(), FaultLog("fail", 0), max_pixels=1_000, **options)


def test_a_recipe_packs_into_object_storage(place: str, tmp_path: Path) -> None:
    content = {
        "name": "tiny",
        "storage": str(tmp_path),
        "data": {"path": f"{place}/digits/train", "source": {"kind": "digits", "val": 0.5}, "streams": 4},
        "model": {"family": "vae"},
        "train": {"images": 64, "batch": 32},
    }
    with Display() as display:
        manifest = packed(recipe.parse(content), display)
    assert manifest == Manifest.load(f"{place}/digits/train")
    assert Manifest.load(f"{place}/digits/val").samples + manifest.samples == 1797


def test_places_keep_their_query(tmp_path: Path) -> None:
    uri = "s3://b/p/q?endpoint_override=h:1&scheme=http"
    assert below(uri, "train") == "s3://b/p/q/train?endpoint_override=h:1&scheme=http"
    assert above(uri) == ("s3://b/p?endpoint_override=h:1&scheme=http", "q")
    assert (below("a?/b", "", "c"), above("a?/b/")) == ("a?/b/c", ("a?", "b"))
    (tmp_path / "x").write_bytes(b"here")
    with local_copy(str(tmp_path), "x") as path:
        assert path == tmp_path / "x"
