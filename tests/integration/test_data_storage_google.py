"""gs:// by pyarrow's client against an emulator of Google Cloud Storage: the same code as for s3://."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import pytest
from batch_streams import BATCH, assert_same, reading

from sfumato.data.format import index
from sfumato.data.format.faults import FaultLog
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.order.epochs import Range
from sfumato.data.packing.index_existing import IndexOptions, make_index
from sfumato.data.packing.pack import pack
from sfumato.data.packing.tasks import T, Task, in_process
from sfumato.data.reading.block_reader import BlockReader
from sfumato.data.storage.filesystems import PATIENCE
from sfumato.data.storage.read import read_bytes, size_of
from sfumato.data.storage.write import entries, names_in, remove
from sfumato.data.verification import check
from sfumato.errors import DataError
from sfumato.training.store import open_store


class Server(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def uri(self, path: str) -> str: ...


@pytest.fixture(scope="module")
def bucket(google_server: Server, three_shards: Path) -> str:
    """The digits, packed straight into the bucket."""
    uri = google_server.uri("digits")
    pack("digits", uri, shard_size=600)
    return uri


def test_a_set_packed_there_is_the_set_packed_here(bucket: str, three_shards: Path) -> None:
    assert verify(bucket, "checksum") == Manifest.load(three_shards)
    assert names_in(bucket) == {path.name for path in three_shards.iterdir()}
    assert_same(reading(bucket, images=BATCH * 7), reading(three_shards, images=BATCH * 7), 30)
    assert check(bucket)[1] == []
    columns, _ = BlockReader.of_shard(bucket, Manifest.load(bucket), 1).as_they_are(Range(1, 100, 20))
    assert len(columns["image"]) == 20


def test_an_interrupted_pack_goes_on(google_server: Server) -> None:
    uri = google_server.uri("interrupted")

    def interrupted(tasks: Sequence[Task[T]], advance: Callable[[int], None]) -> Iterator[T]:
        yield from islice(in_process(tasks, advance), 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack("digits", uri, shard_size=600, run=interrupted)
    assert not Manifest.exists(uri)
    assert pack("digits", uri, shard_size=600).kept == 1
    assert check(uri)[1] == []


def test_an_index_is_made_there(bucket: str, three_shards: Path) -> None:
    before = Manifest.load(bucket)
    for shard in before.shards:
        remove(bucket, index.file_name(shard.name))
    options = IndexOptions(name="digits")
    make_index(bucket, options, FaultLog("fail", 0), max_pixels=100, overwrite=True)
    assert Manifest.load(bucket).digest == before.digest
    for shard in before.shards:
        name = index.file_name(shard.name)
        assert read_bytes(bucket, name) == (three_shards / name).read_bytes()


def test_what_is_missing_is_one_line(google_server: Server, bucket: str) -> None:
    with pytest.raises(DataError, match=r"nothing\.tar: missing$"):
        read_bytes(bucket, "nothing.tar")
    assert size_of(bucket, "nothing.tar") is None
    nowhere = google_server.uri("x").replace("@data", "@no-such-bucket")
    with pytest.raises(DataError, match="there is no bucket 'no-such-bucket'"):
        read_bytes(nowhere, "manifest.json")


def test_checkpoints_lie_there(google_server: Server, tmp_path: Path) -> None:
    store = open_store(google_server.uri("checkpoints"))
    staged = store.staging("images-1", tmp_path / "up")
    content = {"__0_0.distcp": b"shard" * 100_000, ".metadata": b"index"}
    for name, data in content.items():
        (staged / name).write_bytes(data)
    files = store.publish("images-1", staged, rank=0)
    store.write("images-1/manifest.json", b"{}")
    assert store.folders() == ["images-1"]
    found = store.materialise("images-1", files, tmp_path / "down")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == content
    store.remove("images-1")
    assert store.folders() == []
    assert entries(google_server.uri("checkpoints")) == []


def test_an_outage_costs_time_and_has_an_end(
    google_server: Server, bucket: str, three_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, expected = reading(bucket), reading(three_shards)
    assert_same(stream, expected, 3)
    google_server.stop()
    restart = threading.Timer(2.0, google_server.start)
    restart.start()
    try:
        assert_same(stream, expected, 40)
    finally:
        restart.join()
    google_server.stop()
    try:
        monkeypatch.setenv(PATIENCE, "0.5")
        start = time.monotonic()
        with pytest.raises(DataError, match="did not answer"):
            read_bytes(bucket, "manifest.json")
        assert time.monotonic() - start < 30
    finally:
        google_server.start()
