"""Data on a real S3 server: the same stream as from disk, few bytes, patience, and clear errors."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import pytest
from batch_streams import BATCH, assert_same, reading
from pyarrow import fs

from sfumato.data.format import index
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.order.epochs import Range
from sfumato.data.reading.block_reader import BlockReader
from sfumato.data.storage.filesystems import PATIENCE, retried
from sfumato.data.storage.read import open_file, read_bytes, size_of
from sfumato.errors import DataError
from sfumato.training.store import open_store


class Server(Protocol):
    endpoint: str
    bucket: str
    environment: dict[str, str]

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Gate(socketserver.ThreadingTCPServer):
    """A way to the server that counts the bytes that come back, and that can be shut."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("http://").split(":")
        self.target, self.received, self.open = (host, int(port)), 0, True
        self.pairs: list[socket.socket] = []
        super().__init__(("127.0.0.1", 0), _Passage)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def shut(self) -> None:
        self.open = False
        for connection in self.pairs:
            connection.close()
        self.pairs.clear()


class _Passage(socketserver.BaseRequestHandler):
    server: Gate

    def handle(self) -> None:
        if not self.server.open:
            return
        with socket.create_connection(self.server.target) as far:
            self.server.pairs += [far, self.request]
            threading.Thread(target=self._pump, args=(self.request, far, False), daemon=True).start()
            self._pump(far, self.request, True)

    def _pump(self, source: socket.socket, sink: socket.socket, count: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if count:
                    self.server.received += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture(autouse=True)
def credentials(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="module")
def bucket(s3_server: Server, three_shards: Path) -> str:
    """The digits in the bucket; its URI without endpoint."""
    store = fs.S3FileSystem(
        access_key=s3_server.environment["AWS_ACCESS_KEY_ID"],
        secret_key=s3_server.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=s3_server.endpoint,
    )
    fs.copy_files(str(three_shards), f"{s3_server.bucket}/digits", destination_filesystem=store)
    return f"s3://{s3_server.bucket}/digits"


@pytest.fixture
def gate(s3_server: Server) -> Iterator[Gate]:
    with Gate(s3_server.endpoint) as gate:
        yield gate
        gate.shutdown()


def through(gate: Gate, uri: str) -> str:
    return f"{uri}?endpoint_override={gate.endpoint.removeprefix('http://')}&scheme=http"


def test_the_stream_from_s3_is_the_stream_from_disk(bucket: str, three_shards: Path) -> None:
    manifest = verify(bucket, "checksum")
    assert manifest == Manifest.load(three_shards) == Manifest.load(f"file://{three_shards}")
    assert_same(
        reading(bucket, manifest, images=BATCH * 7), reading(three_shards, manifest, images=BATCH * 7), 40
    )
    assert_same(reading(f"file://{three_shards}", manifest), reading(three_shards, manifest), 3)


def test_part_of_a_shard_is_read_by_its_bytes_alone(bucket: str, three_shards: Path, gate: Gate) -> None:
    uri, manifest = through(gate, bucket), Manifest.load(three_shards)
    shard = manifest.shards[1]
    told = index.load_shard(uri, shard)  # once a process and shard
    before = gate.received
    columns, _ = BlockReader.of_shard(uri, manifest, 1).as_they_are(Range(1, 100, 20))
    assert len(columns["image"]) == 20
    span = int(told.offsets[119] + told.sizes[119] - told.offsets[100])
    spent = gate.received - before
    assert span <= spent < span + 4096 < shard.bytes / 10  # headers of two answers


def test_an_outage_costs_time_and_nothing_else(bucket: str, three_shards: Path, gate: Gate) -> None:
    manifest = Manifest.load(three_shards)
    stream, expected = reading(through(gate, bucket), manifest), reading(three_shards, manifest)
    assert_same(stream, expected, 5)
    gate.shut()
    threading.Timer(3.0, setattr, (gate, "open", True)).start()
    start = time.monotonic()
    assert_same(stream, expected, 40)
    assert time.monotonic() - start > 2.5


def test_a_checkpoint_outlasts_an_outage(s3_server: Server, gate: Gate, tmp_path: Path) -> None:
    store = open_store(through(gate, f"s3://{s3_server.bucket}/checkpoints"))
    staged = store.staging("images-1", tmp_path / "up")
    content = {"__0_0.distcp": b"shard" * 100_000, ".metadata": b"index"}
    for name, data in content.items():
        (staged / name).write_bytes(data)
    gate.shut()
    threading.Timer(1.0, setattr, (gate, "open", True)).start()
    files = store.publish("images-1", staged, rank=0)
    store.write("images-1/manifest.json", b"{}")
    assert store.folders() == ["images-1"]
    gate.shut()
    threading.Timer(1.0, setattr, (gate, "open", True)).start()
    found = store.materialise("images-1", files, tmp_path / "down")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == content


@pytest.mark.slow
def test_a_server_stopped_for_20_seconds_and_started_again(
    bucket: str, three_shards: Path, s3_server: Server
) -> None:
    manifest = Manifest.load(three_shards)
    stream, expected = reading(bucket, manifest), reading(three_shards, manifest)
    assert_same(stream, expected, 5)
    s3_server.stop()
    restart = threading.Timer(20.0, s3_server.start)
    restart.start()
    try:
        assert_same(stream, expected, 100)
    finally:
        restart.join()


def test_patience_has_an_end(bucket: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "0.5")
    gate.shut()
    with pytest.raises(DataError, match=r"^s3://data/digits.*: x\.bin: the storage at .* did not answer"):
        open_file(through(gate, bucket), "x.bin")


def test_what_is_missing_is_told_at_once(bucket: str, s3_server: Server) -> None:
    with pytest.raises(DataError, match=r"digits: nothing\.tar: missing$"):
        open_file(bucket, "nothing.tar")
    assert size_of(bucket, "nothing.tar") is None
    for action in (size_of, read_bytes):
        with pytest.raises(DataError, match=r"^s3://no-such-bucket/x: there is no bucket 'no-such-bucket'"):
            action("s3://no-such-bucket/x", "manifest.json")
    with pytest.raises(DataError, match=r"no manifest\.json there"):
        Manifest.load(f"s3://{s3_server.bucket}/elsewhere")


def test_credentials_that_are_wrong_or_absent(
    bucket: str, s3_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A URI of its own each, since a process keeps one connection a URI.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DataError, match=r"manifest\.json: access denied; check AWS_ACCESS_KEY_ID"):
        Manifest.load(bucket + "?scheme=http")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match="no credentials found; set AWS_ACCESS_KEY_ID"):
        read_bytes(f"s3://{s3_server.bucket}/digits/?scheme=http", "manifest.json")


def test_only_what_may_pass_is_tried_again() -> None:
    calls: list[float] = []

    def fail(error: OSError) -> None:
        calls.append(time.monotonic())
        if len(calls) < 4:
            raise error

    retried(lambda: fail(OSError("AWS Error SLOW_DOWN during GetObject operation")), "test")
    assert len(calls) == 4
    gaps = [after - before for before, after in pairwise(calls)]
    assert gaps[0] >= 0.05
    assert gaps[2] >= 0.2  # twice, and twice again
    calls.clear()
    for error in (OSError("AWS Error ACCESS_DENIED"), FileNotFoundError("x"), OSError(28, "No space left")):
        with pytest.raises(OSError, match=str(error)[:10]):
            retried(lambda error=error: fail(error), "test")
    assert len(calls) == 3
