"""The package of a job: the recipe with its bases, the user's own code, Sfumato, and what to do with them.

The same content makes the same bytes, so that a cluster keeps it once. It holds no secret, and nothing but
what is listed here:

    job.json              the command, and what it was submitted with (`Order`)
    recipe/               the recipe or pipeline, with bases and recipes of stages, without comments
    <module>/ or .py      a family's code, where the recipe names one by import path
    sfumato/              this version of Sfumato, for a cluster that has its dependencies alone
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import sfumato
from sfumato.errors import ConfigError
from sfumato.runtime.jobs import local_code
from sfumato.runtime.jobs.command import Command

ORDER = "job.json"
RECIPES = "recipe"
LARGEST = 64 << 20
_NAMED = ("ray", "torch", "diffusers", "mlflow", "numpy", "pydantic")
_OURS = {".py", ".md", ".yaml", ".json", ".html", ".css", ".typed"}
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Order:
    """What the job is to do, in `job.json`. It names environment variables and never holds their values."""

    command: str
    file: str | None
    """The recipe or pipeline, by its place in the package."""
    arguments: tuple[str, ...]
    """Overrides and options; all words of a command without a file."""
    root: str | None
    """Folder on the cluster that relative places start from."""
    secrets: tuple[str, ...]
    """Environment variables that must be set there."""
    version: str
    code: str
    """Digest of Sfumato's own source."""
    packages: dict[str, str]
    python: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def load(cls, path: Path) -> Order:
        """Raises ConfigError where the file is no order."""
        try:
            content = json.loads(path.read_text())
            lists = {name: tuple(content[name]) for name in ("arguments", "secrets")}
            return cls(**{**content, **lists})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path} is no job of this version of Sfumato: {error}") from error


def order(command: Command, *, root: str | None, secrets: tuple[str, ...]) -> Order:
    return Order(
        command=command.name,
        file=None if command.file is None else f"{RECIPES}/{command.file}",
        arguments=command.arguments,
        root=root,
        secrets=secrets,
        version=sfumato.__version__,
        code=code_digest(),
        packages=versions(),
        python=python_version(),
    )


def files_of(command: Command, placed: Order, *, root: Path) -> dict[str, bytes]:
    """The package without Sfumato itself, by path. `root` is the project's folder."""
    files = {ORDER: placed.to_json().encode()}
    files |= {f"{RECIPES}/{name}": text.encode() for name, text in command.files().items()}
    for module in command.modules:
        for path in local_code.sources(module, root):
            files[path.relative_to(root.resolve()).as_posix()] = path.read_bytes()
    return files


def write(files: Mapping[str, bytes], path: Path) -> None:
    """A zip of the files and of Sfumato. Raises ConfigError where it is too large to be sent."""
    everything = {**files, **{f"sfumato/{name}": content for name, content in own_files().items()}}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in sorted(everything):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(info, everything[name])
    if archive.tell() > LARGEST:
        largest = max(everything, key=lambda name: len(everything[name]))
        raise ConfigError(
            f"the package of {archive.tell() >> 20} MiB is larger than {LARGEST >> 20} MiB ({largest} alone "
            f"has {len(everything[largest]) >> 20}): keep data in storage, or exclude it in .sfumatoignore"
        )
    path.write_bytes(archive.getvalue())


def own_files() -> dict[str, bytes]:
    """Sfumato's own files by their path in the package."""
    folder = Path(sfumato.__file__).parent
    paths = (path for path in folder.rglob("*") if path.suffix in _OURS or path.name == "py.typed")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths) if path.is_file()
    }


def code_digest() -> str:
    """Twelve digits that stand for Sfumato's source."""
    digest = hashlib.sha256()
    for name, content in own_files().items():
        if name.endswith(".py"):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of the packages that a run's numbers depend on, without builds (`+cpu`)."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in _NAMED}


def python_version() -> str:
    return ".".join(map(str, sys.version_info[:2]))
