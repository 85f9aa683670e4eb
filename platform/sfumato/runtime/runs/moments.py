"""Records when the parts of a run's start were done, in `logs/start.jsonl`; `make bench-start` reads it.

One line of JSON per moment: `moment`, its name; `time`, unix seconds; `cpu`, CPU seconds of the process so
far; `process`, its id. Calls of the same run append, so a restart can be read there, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

from sfumato.runtime.runs.run_folder import RunFolder

FILE = "start.jsonl"
_early: list[dict[str, Any]] = []


def mark(moment: str, folder: RunFolder | None = None) -> None:
    """Record that the start has come so far. Without a folder, it is kept until the next call with one.

    Never raises for a full disk or a run that was deleted: nothing depends on it.
    """
    _early.append(
        {"moment": moment, "time": time.time(), "cpu": round(time.process_time(), 2), "process": os.getpid()}
    )
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.logs.mkdir(exist_ok=True)
        with (folder.logs / FILE).open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in _early)
    _early.clear()
