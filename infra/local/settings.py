"""What a stack keeps in its folder: ports, passwords, and the file of variables for its users."""

from __future__ import annotations

import json
import secrets
import shlex
import socket
from pathlib import Path

# Where each is looked for first; taken ones give way to any that is free.
_PORTS = {
    "s3": 8333,
    "s3_master": 9333,
    "s3_filer": 8888,
    "s3_volume": 9340,
    "database": 15432,
    "mlflow": 5000,
    "ray": 6379,
    "dashboard": 8265,
    "head_metrics": 8081,
    "head_agent": 52365,
    "worker_metrics": 8082,
    "worker_agent": 52366,
}
_HIGHEST = 55_000  # the S3 server also takes each of its ports plus 10,000
BUCKET = "sfumato"
USER = "sfumato"


class Settings:
    """Ports and passwords of the stack in `folder`, chosen once and kept, readable to us alone."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self.nodes = folder, nodes
        known = folder / "settings.json"
        if not known.exists():
            _write_private(known, json.dumps({"ports": _free_ports(), "passwords": _passwords()}, indent=1))
        content = json.loads(known.read_text())
        self.ports: dict[str, int] = content["ports"]
        self.passwords: dict[str, str] = content["passwords"]
        self.token = folder / "ray-token"
        if not self.token.exists():
            _write_private(self.token, self.passwords["ray"])

    @property
    def head(self) -> str:
        """The head's address; where there is a second node, they have to differ."""
        return "127.0.0.1" if self.nodes == 1 else "127.0.0.2"

    @property
    def ray_address(self) -> str:
        return f"{self.head}:{self.ports['ray']}"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    @property
    def s3(self) -> dict[str, str]:
        """How to reach the object store."""
        return {
            "AWS_ACCESS_KEY_ID": self.passwords["s3_id"],
            "AWS_SECRET_ACCESS_KEY": self.passwords["s3_key"],
            "AWS_ENDPOINT_URL": self.url("s3"),
            "MLFLOW_S3_ENDPOINT_URL": self.url("s3"),
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def ray(self) -> dict[str, str]:
        """How to be let into the cluster."""
        found = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        if self.nodes == 1:
            # A cluster of one node: Ray then keeps every socket on 127.0.0.1.
            found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        return found

    @property
    def tracking(self) -> dict[str, str]:
        """How to reach the tracking server."""
        return {
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.passwords["mlflow"],
        }

    def write_environment(self) -> Path:
        """A file for a shell to read (`. FILE`), with all that a user of the stack needs."""
        variables = {
            **self.ray,
            "RAY_ADDRESS": self.ray_address,
            "RAY_API_SERVER_ADDRESS": self.url("dashboard"),
            **self.tracking,
            **self.s3,
        }
        path = self.folder / "env"
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        _write_private(path, "\n".join(lines) + "\n")
        return path


def _passwords() -> dict[str, str]:
    return {
        "s3_id": secrets.token_hex(10),
        "s3_key": secrets.token_urlsafe(30),
        "database": secrets.token_urlsafe(24),
        "mlflow": secrets.token_urlsafe(24),
        "flask": secrets.token_hex(32),
        "ray": secrets.token_hex(32),
    }


def _free_ports() -> dict[str, int]:
    taken: set[int] = set()
    for name, port in _PORTS.items():
        while port in taken or port >= _HIGHEST or not _is_free(port):
            port = _any_port()
        taken.add(port)
        _PORTS[name] = port
    return dict(_PORTS)


def _is_free(port: int) -> bool:
    for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
