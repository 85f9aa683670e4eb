"""What a pipeline remembers between calls: which stage finished on which inputs, and what it made.

runs/pipelines/digits-latent/
  stages/first_stage/3f2a91c4d0e1b2a3.json    a finished stage, by the digest of its inputs
  again/diffusion.json                        a stage whose rerun was requested (`--from`)
  pipeline.json                               the parent run in MLflow
  lock  logs/  tracking/
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfumato import __version__
from sfumato.errors import ConfigError
from sfumato.runtime.pipeline.stage import Outputs
from sfumato.runtime.runs.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage that finished."""

    key: str
    """Digest of `inputs`."""
    inputs: dict[str, Any]
    outputs: Outputs
    seconds: float
    finished: float
    """Unix seconds."""
    version: str = __version__


class Records:
    """The state folder. Writing is atomic: after a kill, a stage is either finished or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = RunFolder(folder)

    def find(self, stage: str, key: str) -> StageRecord | None:
        """The stage's outputs for these inputs."""
        content = self._files.read_json(self._name(stage, key))
        return None if content is None else StageRecord(**content)

    def latest(self, stage: str) -> StageRecord | None:
        """The last time that the stage finished, on whatever inputs."""
        found = [
            self._files.read_json(str(path)) for path in (self.folder / "stages" / stage).glob("[!.]*.json")
        ]
        return StageRecord(**max(found, key=lambda record: record["finished"])) if found else None

    def finish(self, stage: str, record: StageRecord) -> None:
        """Record a finished stage and drop any request to rerun it."""
        self._files.write_json(self._name(stage, record.key), asdict(record))
        (self.folder / "again" / f"{stage}.json").unlink(missing_ok=True)

    def order_again(self, stages: Iterable[str]) -> None:
        """Request that stages rerun, in this call or, if it is interrupted, in a later one."""
        for stage in stages:
            self._files.write_json(f"again/{stage}.json", {"ordered": time.time()})

    def again(self, stage: str) -> bool:
        return (self.folder / "again" / f"{stage}.json").is_file()

    def begun(self, stage: str) -> Path | None:
        """The fresh run that an interrupted call had started for the stage."""
        run = (self._files.read_json(f"again/{stage}.json") or {}).get("run")
        return Path(run) if run and Path(run, "run.json").is_file() else None

    def began(self, stage: str, run: Path) -> None:
        if self.again(stage):
            self._files.update_json(f"again/{stage}.json", run=str(run))

    @property
    def parent(self) -> str | None:
        """The parent run of the last call, unless that call finished everything."""
        content = self._files.read_json("pipeline.json") or {}
        return None if content.get("complete") else content.get("mlflow_run_id")

    def set_parent(self, run_id: str, *, complete: bool) -> None:
        self._files.write_json("pipeline.json", {"mlflow_run_id": run_id, "complete": complete})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Allows one call at a time. Raises ConfigError if another one is running."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ConfigError(
                    f"process {file.read().strip() or '?'} is running this pipeline already ({self.folder}); "
                    "wait for it, or end it"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _name(self, stage: str, key: str) -> str:
        return str(self.folder / "stages" / stage / f"{key[:16]}.json")
