"""The folder of a run: everything that it wrote, under a name that identifies what it computes.

A run is identified by its recipe's digest and its data's digest, so the same recipe on the same data
resumes where it stopped, and a changed recipe becomes another run. Runs of earlier versions:
`earlier.py`.

    runs/digits-ddpm-3f2a91c4/
      recipe.yaml  run.json  stages/  checkpoints/  previews/  snapshots/  best/  model/  evaluation/
      samples/  logs/
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.core.drafts import write_whole
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.recipe import Recipe  # imports PyTorch


RECORD = ("mlflow_run_id", "mlflow_experiment_id", "mlflow_started")
"""The part of run.json about the run in MLflow."""


def _owned(folder: Path) -> str:
    """(it belongs to NAME), where that is somebody else."""
    with contextlib.suppress(KeyError, OSError, NotImplementedError):
        return "" if folder.stat().st_uid == os.geteuid() else f" (it belongs to {folder.owner()})"
    return ""


class RunFolder:
    """Paths and small state files of a run. Writes are atomic: a file is either complete or unchanged."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        data_digest: str,
        *,
        fresh: bool = False,
        taken: Callable[[RunFolder], bool] = lambda folder: False,
    ) -> RunFolder:
        """The folder of this recipe on this data: the newest, if `--fresh` has created several.

        With `fresh`, one that no earlier run has used; `taken` tells whether a run whose folder is not on
        this disk has left something elsewhere, such as checkpoints in object storage.
        """
        first = Path(recipe.storage) / run_id(recipe.name, recipe.digest(), data_digest)
        numbers = [  # up to three digits: a copy with a date in its name is not a run
            int(path.name.removeprefix(f"{first.name}-"))
            for path in first.parent.glob(f"{glob.escape(first.name)}-*")
            if path.name.removeprefix(f"{first.name}-").isdecimal() and len(path.name) <= len(first.name) + 4
        ]
        number = max(numbers, default=1 if first.exists() else 0) + fresh
        while True:
            folder = cls(first if number <= 1 else first.with_name(f"{first.name}-{number}"))
            if not (fresh and taken(folder)):
                return folder
            number += 1

    def create(
        self, recipe: Recipe, data_digest: str, *, keep_recipe: bool = False, schema: int | None = None
    ) -> None:
        """Create the folder, or check that it is this recipe's. Raises ConfigError if it is another's.

        `schema` is that of the version that began the run, if it is not this one.
        `keep_recipe` leaves an existing recipe.yaml unchanged: measuring a run, perhaps with other
        settings, must not alter the record of its training.
        """
        known = self.read_json("run.json")
        if known is not None and known["recipe_digest"] != recipe.digest():
            raise ConfigError(f"{self.path} belongs to another recipe; use --fresh for a new run")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"storage={recipe.storage!r}: no folder can be made there ({error.strerror}): choose another"
            ) from error
        if not os.access(self.path, os.W_OK | os.X_OK, effective_ids=True):
            raise ConfigError(
                f"{self.path} cannot be written{_owned(self.path)}: copy it to a folder of yours, or change "
                "its rights"
            )
        if not (keep_recipe and (self.path / "recipe.yaml").is_file()):
            self.write_text("recipe.yaml", recipe.to_yaml())
        if known is None:
            about = {"name": recipe.name, "recipe_digest": recipe.digest(), "data_digest": data_digest}
            now = recipe.identity()["schema"]
            begun = {} if schema in (None, now) else {"begun_schema": schema}
            self.write_json("run.json", {**about, "schema": now, **begun})

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint_uri(self, recipe: Recipe) -> str:
        """Where the run's checkpoints are: in its folder, or in the object storage that the recipe names."""
        if recipe.train.checkpoint.uri is None:
            return str(self.checkpoints)
        return f"{recipe.train.checkpoint.uri.rstrip('/')}/{self.id}"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def read_json(self, name: str) -> Any:
        """Content of a JSON file, or None if it does not exist."""
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None

    def write_json(self, name: str, content: Any) -> None:
        self.write_text(name, json.dumps(content, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text.encode())

    def update_json(self, name: str, **values: Any) -> None:
        self.write_json(name, {**(self.read_json(name) or {}), **values})

    def forget_record(self) -> None:
        """Make the next call create a new MLflow record for the run."""
        known = self.read_json("run.json") or {}
        self.write_json("run.json", {key: value for key, value in known.items() if key not in RECORD})

    def stage_result(self, stage: str, key: str) -> dict[str, Any] | None:
        """The result of a stage, if it finished with the same inputs (`key`)."""
        record = self.read_json(f"stages/{stage}.json")
        if record is None or record["key"] != key:
            return None
        return dict(record["result"])

    def finish_stage(self, stage: str, key: str, result: dict[str, Any]) -> None:
        self.write_json(f"stages/{stage}.json", {"key": key, "result": result})

    def forget_stage(self, stage: str) -> None:
        """Make a stage run again on the same inputs."""
        (self.path / "stages" / f"{stage}.json").unlink(missing_ok=True)

    def claim(self) -> str:
        """Make this attempt the only writer; an earlier attempt that outlived its driver notices."""
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.write_text("attempt", token)
        return token

    def holds(self, token: str) -> bool:
        """Whether no later attempt has claimed the run."""
        try:
            return (self.path / "attempt").read_text() == token
        except OSError:
            return False


def run_id(name: str, recipe_digest: str, data_digest: str) -> str:
    """The name of the first folder of a recipe's run on this data."""
    return f"{name}-{hashlib.sha256(f'{recipe_digest}:{data_digest}'.encode()).hexdigest()[:8]}"


def stage_key(*parts: str) -> str:
    """The key of a stage with these inputs."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def snapshot_folder(folder: RunFolder, images: int) -> Path:
    """Where the workers write the model that is evaluated after this many images."""
    return folder.path / "snapshots" / f"images-{images:012d}"
