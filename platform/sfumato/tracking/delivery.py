"""Hands events to the tracking server, each (key, step) once.

A resumed run computes values again that it had logged before it was killed, and a request that timed out
may still have arrived. So the first event of a key asks the server which steps it has.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sfumato.tracking.spool import Event, Segment
from sfumato.tracking.store import TrackingStore, is_permanent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger("sfumato")

METRICS_A_REQUEST = 1000
_IMAGE = re.compile(r"images/(?P<key>[^+%]+)[+%]step[+%](?P<step>\d+)[+%].*compressed\.webp")


class Delivery:
    """Sends the events of one run."""

    def __init__(self, store: TrackingStore, run_id: str) -> None:
        self._store = store
        self._run_id = run_id
        self._client: MlflowClient | None = None
        self._steps: dict[str, set[int]] = {}
        self._images: set[tuple[str, int]] | None = None

    def send(self, segment: Segment, events: Sequence[Event]) -> None:
        """Send events of one kind (see `groups`); raises if it should be tried again."""
        from mlflow.exceptions import MlflowException

        try:
            if self._client is None:
                self._client = self._connect()
            getattr(self, f"_{events[0]['kind']}")(self._client, segment, events)
        except Exception as error:
            # Whether a failed request arrived is not known: ask again. Uploads of files raise errors of other
            # kinds than MLflow's.
            self._steps.clear()
            self._images = None
            if not (isinstance(error, MlflowException) and is_permanent(error)):
                raise
            log.warning("tracking: the server refuses an event (%s)", str(error).splitlines()[0][:200])

    def _connect(self) -> MlflowClient:
        database = self._store.database
        if database is not None and not database.exists():
            raise FileNotFoundError(
                f"{database} is not on this machine: runs on several machines need a tracking server"
            )
        return self._store.client()

    def _metrics(self, client: MlflowClient, segment: Segment, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        fresh = [
            Metric(key, value, event["time"], event["step"])
            for event in events
            for key, value in event["values"].items()
            if self._is_new(client, key, event["step"])
        ]
        for start in range(0, len(fresh), METRICS_A_REQUEST):
            some = fresh[start : start + METRICS_A_REQUEST]
            try:
                client.log_batch(self._run_id, metrics=some, synchronous=True)
            except MlflowException as error:
                if not is_permanent(error):
                    raise
                self._metrics_singly(client, some)

    def _metrics_singly(self, client: MlflowClient, metrics: Iterable[Metric]) -> None:
        """One bad value must not take the rest of its batch with it."""
        from mlflow.exceptions import MlflowException

        for metric in metrics:
            try:
                client.log_batch(self._run_id, metrics=[metric], synchronous=True)
            except MlflowException as error:
                if not is_permanent(error):
                    raise
                log.warning("tracking: the server refuses %s = %s", metric.key, metric.value)

    def _is_new(self, client: MlflowClient, key: str, step: int) -> bool:
        if key not in self._steps:
            self._steps[key] = {metric.step for metric in client.get_metric_history(self._run_id, key)}
        if step in self._steps[key]:
            return False
        self._steps[key].add(step)
        return True

    def _image(self, client: MlflowClient, segment: Segment, events: Sequence[Event]) -> None:
        from sfumato.tracking.as_it_is import StoredPicture

        if self._images is None:
            self._images = self._logged_images(client)
        for event in events:
            identity = (event["key"].replace("/", "~"), event["step"])
            path = segment.files / event["file"]
            if identity not in self._images and path.exists():
                with StoredPicture(path) as image:
                    client.log_image(
                        self._run_id,
                        image,
                        key=event["key"],
                        step=event["step"],
                        timestamp=event["time"],
                        synchronous=True,
                    )
            self._images.add(identity)

    def _logged_images(self, client: MlflowClient) -> set[tuple[str, int]]:
        paths = [item.path for item in client.list_artifacts(self._run_id, "images")]
        found = [_IMAGE.fullmatch(path) for path in paths]
        return {(match["key"], int(match["step"])) for match in found if match}

    def _artifact(self, client: MlflowClient, segment: Segment, events: Sequence[Event]) -> None:
        for event in events:
            folder = segment.files / event["file"]
            if folder.exists():
                client.log_artifacts(self._run_id, str(folder), event["to"])

    def _tags(self, client: MlflowClient, segment: Segment, events: Sequence[Event]) -> None:
        for event in events:
            for key, value in event["values"].items():
                client.set_tag(self._run_id, key, value)

    def _end(self, client: MlflowClient, segment: Segment, events: Sequence[Event]) -> None:
        event = events[-1]
        client.set_terminated(self._run_id, event["status"], event["time"])


def groups(events: Iterable[tuple[Event, int]]) -> Iterable[tuple[list[Event], int]]:
    """Neighbours that one request can carry, with the offset of their end; only metrics go together."""
    together: list[Event] = []
    values = 0
    offset = 0
    for event, end in events:
        count = len(event["values"]) if event["kind"] == "metrics" else METRICS_A_REQUEST
        if together and values + count > METRICS_A_REQUEST:
            yield together, offset
            together, values = [], 0
        together.append(event)
        values += count
        offset = end
    if together:
        yield together, offset


def describe(error: BaseException) -> str:
    """The first line of an error."""
    lines: list[Any] = str(error).splitlines() or [type(error).__name__]
    return str(lines[0])[:200]
