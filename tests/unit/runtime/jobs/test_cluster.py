"""A cluster's dashboard as it answers over HTTP and HTTPS, and what of it becomes one line."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import re
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sfumato.errors import ConfigError, SfumatoError
from sfumato.runtime.jobs import package
from sfumato.runtime.jobs.cluster import Cluster, Job
from sfumato.runtime.jobs.follow import Output, ended
from sfumato.runtime.jobs.submit import check_version, choose_name


class Dashboard(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, tuple[int, Any]]] = {}

    def do_GET(self) -> None:
        status, content = self.answers.get(self.path.partition("?")[0], (404, "not found"))
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[ThreadingHTTPServer]:
    version = {"version": "4", "ray_version": package.versions()["ray"], "ray_commit": "c"}
    Dashboard.answers = {"/api/version": (200, version)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def http(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_another_version_of_ray_is_refused_with_both_named(dashboard: ThreadingHTTPServer) -> None:
    ours = package.versions()["ray"]
    assert check_version(Cluster(http(dashboard))) is None
    major, minor, _ = ours.split(".")
    Dashboard.answers["/api/version"][1]["ray_version"] = f"{major}.{minor}.99"
    assert f"runs Ray {major}.{minor}.99, this machine has {ours}" in (
        check_version(Cluster(http(dashboard))) or ""
    )
    Dashboard.answers["/api/version"][1]["ray_version"] = "2.41.0"
    with pytest.raises(ConfigError, match=rf"runs Ray 2\.41\.0 and this machine has Ray {ours}: install"):
        check_version(Cluster(http(dashboard)))


def test_nodes_that_are_gone_do_not_count(dashboard: ThreadingHTTPServer) -> None:
    nodes = [
        {"state": "ALIVE", "resources_total": {"CPU": 4.0}},
        {"state": "DEAD", "resources_total": {"CPU": 64.0}},
        {"state": "ALIVE", "resources_total": None},
    ]
    Dashboard.answers["/api/v0/nodes"] = (200, {"data": {"result": {"result": nodes}}})
    assert Cluster(http(dashboard)).nodes() == [{"CPU": 4.0}, {}]
    Dashboard.answers["/api/v0/nodes"] = (500, "Traceback\nmany lines")
    with pytest.raises(SfumatoError, match="/api/v0/nodes answers 500"):
        Cluster(http(dashboard)).nodes()


@pytest.mark.parametrize(
    ("status", "said"), [(401, "asks for a token and none was given"), (403, "does not accept the token")]
)
def test_tokens(dashboard: ThreadingHTTPServer, status: int, said: str) -> None:
    Dashboard.answers["/api/version"] = (status, "no")
    with pytest.raises(ConfigError, match=said):
        Cluster(http(dashboard))


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://", "auto"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigError, match=r"expected that of the cluster's dashboard"):
        Cluster(address)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="user name or password") as refused:
        Cluster("https://me:swordfish@head:8265")
    assert "swordfish" not in str(refused.value)


def certificate(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) of 127.0.0.1, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "cert.pem", folder / "key.pem"


def test_a_certificate_is_checked(
    dashboard: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(known, key)
    dashboard.socket = context.wrap_socket(dashboard.socket, server_side=True)
    address = f"https://127.0.0.1:{dashboard.server_port}"
    with pytest.raises(ConfigError, match=r"certificate of https://.* is not trusted .*--ca-file"):
        Cluster(address)
    assert Cluster(address, ca_file=known).ray_version == package.versions()["ray"]
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(known))
    assert Cluster(address).ray_version, "what other programs trust is trusted"
    with pytest.raises(ConfigError, match=r"--ca-file .*: no such file"):
        Cluster(address, ca_file=tmp_path / "none")


def test_a_token_that_goes_unencrypted_is_said(
    dashboard: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(http(dashboard))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    assert cluster.warning is None, "nobody listens on loopback"
    cluster.address = "http://head:8265"
    assert "is not encrypted" in (cluster.warning or "")
    cluster.address = "https://head:8265"
    assert cluster.warning is None


def job(name: str, status: str, run: str = "tiny-1", **more: Any) -> Job:
    fields = {"message": "", "command": "", "started": None, "ended": None, "exit_code": None}
    return Job(name, status, run=run, **{**fields, **more})


def test_names() -> None:
    old = [job("tiny-1-1", "FAILED"), job("tiny-1-2", "SUCCEEDED"), job("x", "RUNNING", run="other")]
    assert choose_name(None, "tiny-1", old, "here") == "tiny-1-3"
    assert choose_name("mine", "tiny-1", old, "here") == "mine"
    with pytest.raises(ConfigError, match=r"job name 'x' is taken at here \(status RUNNING\)"):
        choose_name("x", "tiny-1", old, "here")
    with pytest.raises(ConfigError, match="job 'x' at here is working on this run already"):
        choose_name(None, "other", old, "here")


@pytest.mark.parametrize(
    ("given", "status", "line"),
    [
        (job("a", "SUCCEEDED", exit_code=0), 0, "is done"),
        (job("a", "FAILED", exit_code=2), 2, "failed (status 2)"),
        (job("a", "FAILED", exit_code=-9), 1, "failed (status -9)"),
        (job("a", "FAILED", message="no room\nTraceback"), 1, "failed: no room"),
        (job("a", "STOPPED"), 1, "was stopped"),
    ],
)
def test_the_exit_status_is_the_jobs(given: Job, status: int, line: str) -> None:
    found, said = ended(given)
    assert found == status and said.partition("job a ")[2].startswith(line)


def test_output_puts_pieces_together_and_progress_in_one_place() -> None:
    from io import StringIO

    from rich.console import Console

    for terminal, shown in ((False, True), (True, False)):
        text = StringIO()
        console = Console(file=text, force_terminal=terminal, width=100, color_system=None)
        with Output(console) as show:
            for piece in ("train: sta", "rted\ntrain: 1,024 of 8,000  loss 1.0\n[red]x", "[/]\nlast"):
                show(piece)
        plain = re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]|\r", "\n", text.getvalue())
        lines = [line.rstrip() for line in plain.splitlines()]
        assert "train: started" in lines and "[red]x[/]" in lines and "last" in lines, lines
        assert ("train: 1,024 of 8,000  loss 1.0" in lines) is shown
