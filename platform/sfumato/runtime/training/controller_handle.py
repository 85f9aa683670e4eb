"""Handles of Ray Train's actors as bytes, to pass them on through a process that does not use them.

Unpickling such a handle imports Ray Train, which takes longer than everything else that the board does.
The bytes come from the run's own processes, through Ray's own pickled calls, and never from a file.
"""

from __future__ import annotations

from typing import Any, cast

from ray import cloudpickle


def packed(handle: Any) -> bytes:
    return cast(bytes, cloudpickle.dumps(handle))  # type: ignore[no-untyped-call]


def unpacked(handle: bytes) -> Any:
    return cloudpickle.loads(handle)
