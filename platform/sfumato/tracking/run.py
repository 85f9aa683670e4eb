"""The tracker of a run, which training and evaluation call to record their results.

Only `Tracker.start` talks to the server, so that a wrong address is reported before any work is done.
From then on an event is a line in a file, and a background thread sends it: a slow or unreachable server
neither slows nor stops a run.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from sfumato.errors import ConfigError, SfumatoError
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.delivery import Delivery, describe
from sfumato.tracking.redact import clean
from sfumato.tracking.sender import Sender, drain_others
from sfumato.tracking.spool import Segment
from sfumato.tracking.start import Beginning, DatasetInfo, open_run
from sfumato.tracking.store import TrackingStore
from sfumato.tracking.system import SystemSampler

log = logging.getLogger("sfumato")

Status = Literal["FINISHED", "FAILED", "KILLED"]
_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)
_IMAGE_KEY = re.compile(r"[^\w\-. /]", re.ASCII)


@dataclass(frozen=True, slots=True)
class TrackerHandle:
    """The values that another process needs to write into a run; they can be pickled."""

    store: TrackingStore
    experiment_id: str
    run_id: str
    started: float
    spool: str
    settings: TrackingSettings

    def open(self, role: str = "train") -> Tracker:
        """A tracker of the run for this process; uses no network. Only one process per role at a time."""
        if not self.settings.enabled:
            from sfumato.tracking.off import NoTracker  # which extends Tracker

            return NoTracker(self)
        return Tracker(self, role)


class Tracker:
    """Records one run. Methods cost microseconds, and never raise for the server."""

    def __init__(self, handle: TrackerHandle, role: str) -> None:
        self.handle = handle
        self._settings = handle.settings
        folder = Path(handle.spool) / role
        self._segment = Segment.create(folder, limit_bytes=self._settings.spool_mb * 2**20)
        self._delivery = Delivery(handle.store, handle.run_id)
        self._sender = Sender(folder, self._segment, self._delivery)
        self._role = role
        self._closed = False
        self._warned = False
        self._system: SystemSampler | None = None

    @classmethod
    def start(
        cls,
        settings: TrackingSettings,
        *,
        root: Path,
        folder: Path,
        run_name: str,
        run_id: str | None = None,
        experiment_id: str | None = None,
        started: float | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        dataset: DatasetInfo | None = None,
        recipe_yaml: str | None = None,
        parent: str | None = None,
    ) -> Tracker:
        """Open a run (or `run_id` again) in the store that the settings name.

        `root` is the project's folder, which holds the embedded store and whose git revision is recorded;
        `folder` is the run's own, where events wait. Raises SfumatoError where the store does not answer; but
        a run that is resumed, whose `experiment_id` and start (unix seconds) are known, continues without it.
        With `tracking.enabled: false` the tracker records nothing.
        """
        if not run_name.strip():
            raise ConfigError("the run's name is empty: give it one, for example the name of its recipe")
        store, spool = TrackingStore.of(settings, root), str((folder / "tracking").resolve())
        if not settings.enabled:
            return TrackerHandle(store, "", "", time.time(), spool, settings).open()
        beginning = Beginning(
            name=run_name,
            params=params or {},
            tags=tags or {},
            dataset=dataset,
            recipe_yaml=recipe_yaml,
            parent=parent,
        )
        try:
            opened = open_run(store, settings, root, beginning, run_id)
        except SfumatoError as error:
            if isinstance(error, ConfigError) or run_id is None or experiment_id is None or started is None:
                raise
            log.warning("%s; run %s continues, and what it records waits on disk", error, run_id)
            opened = (experiment_id, run_id, started)
        return cls(TrackerHandle(store, *opened, spool, settings), "driver")

    @property
    def run_id(self) -> str:
        """The run's id in MLflow; empty if nothing is recorded (`tracking.enabled: false`)."""
        return self.handle.run_id

    @property
    def experiment_id(self) -> str:
        return self.handle.experiment_id

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Values by name ("train/denoise/loss") at a step, in images. Each (name, step) counts once."""
        if values:
            named = {_NAME.sub("_", key): float(value) for key, value in values.items()}
            self._add({"kind": "metrics", "step": step, "values": named})

    def image(self, key: str, png: bytes, *, step: int) -> None:
        """A picture for the image grid of the UI: the bytes of a PNG, which are stored as they are."""
        if not self._settings.images:
            return
        name = self._segment.keep(png, ".png")
        self._add({"kind": "image", "key": _IMAGE_KEY.sub("_", key), "step": step, "file": name})

    def artifact(self, path: Path, to: str | None = None) -> None:
        """Store a file, or a folder's present contents, in the folder `to` of the run's artifacts."""
        if not path.exists():
            raise FileNotFoundError(f"no artifact {path}")
        name = self._segment.keep_in_folder(path)
        self._add({"kind": "artifact", "file": name, "to": to})

    def tags(self, values: Mapping[str, object]) -> None:
        """Tags of the run, without secrets."""
        self._add({"kind": "tags", "values": clean(values)})

    def sample_system(self) -> None:
        """Record this machine's load from now on, if the settings want it, by seconds since the start."""
        if self._settings.system_metrics and self._system is None:
            started = self.handle.started
            self._system = SystemSampler(
                lambda values: self.metrics(values, step=int(time.time() - started)),
                interval=self._settings.system_interval,
            )

    def finish(self, status: Status = "FINISHED", *, timeout: float = 30.0) -> int:
        """Set the run's status, then close."""
        self._add({"kind": "end", "status": status})
        return self.close(timeout)

    def close(self, timeout: float = 30.0) -> int:
        """Send waiting events for at most `timeout` seconds; returns how many remain on disk.

        The next process that opens the run, or `send_left`, sends the rest.
        """
        if self._closed:
            return 0
        self._closed = True
        if self._system is not None:
            self._system.close()
        if not self._sender.close(timeout):
            left = sum(1 for _ in self._segment.unsent())
            if left:
                log.warning(
                    "tracking: %d events of run %s wait in %s because %s does not take them; "
                    "they are sent when the run is resumed or evaluated",
                    left,
                    self.run_id,
                    self.handle.spool,
                    self.handle.store.shown,
                )
            return left
        return 0

    def send_left(self) -> None:
        """Send the events that ended processes of this run left; the driver calls it after training."""
        try:
            drain_others(Path(self.handle.spool), self._role, Delivery(self.handle.store, self.run_id))
        except Exception as error:  # noqa: BLE001 - on any failure, events are kept and sent next time
            log.warning("tracking: some events of run %s wait on disk (%s)", self.run_id, describe(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            ended = issubclass(kind, (KeyboardInterrupt, SystemExit))  # Ray's workers exit on SIGTERM
            self.finish("KILLED" if ended else "FAILED")

    def _add(self, event: dict[str, Any]) -> None:
        """Queue an event; if there is no room, count it, and warn once."""
        event["time"] = int(time.time() * 1000)
        room = not ("file" in event and event["file"] is None) and self._segment.append(event)
        if not room and not self._warned and not self._closed:
            self._warned = True
            log.warning(
                "tracking: the spool in %s is full (tracking.spool_mb: %d, or the disk): "
                "events are dropped until there is room",
                self.handle.spool,
                self._settings.spool_mb,
            )
