"""Filesystems by URI: retries for temporary failures, clear messages for the others.

pyarrow opens local folders, `file://`, `s3://` (any endpoint: AWS_ENDPOINT_URL and the other AWS variables)
and `gs://`. A request that fails for a reason that may pass (no connection, throttling, an answer 5xx) is
repeated with growing pauses until SFUMATO_STORAGE_PATIENCE_S seconds (120) have passed, so that a restart of
the storage costs nothing but time. All other failures are reported at once.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import pyarrow as pa
from pyarrow import fs

from sfumato.errors import DataError

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = "SFUMATO_STORAGE_PATIENCE_S"
_DEFAULT_PATIENCE_S = 120.0
_GOOGLE_RETRY_S = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_TRANSIENT = re.compile(
    "NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|"
    "REQUEST_TIME_TOO_SKEWED|UNKNOWN.*HTTP response code 5|HTTP status 5|curlCode|[Tt]imed? ?out|"
    "[Cc]onnection (reset|refused|aborted)|UNAVAILABLE|Retry policy exhausted"
)
_DENIED = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|INVALID_CLIENT_TOKEN|"
    "MISSING_AUTHENTICATION|EXPIRED_TOKEN|UNRECOGNIZED_CLIENT|HTTP response code 40[13]|"
    "PERMISSION_DENIED|UNAUTHENTICATED"
)


def is_remote(folder: str) -> bool:
    return "://" in folder and not folder.startswith("file://")


def filesystem(folder: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a folder or URI, and the folder's path in it. Raises DataError."""
    if "://" not in folder:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(folder))
    return _of_uri(folder)


@lru_cache(maxsize=16)
def _of_uri(folder: str) -> tuple[fs.FileSystem, str]:
    """Cached with its connections, one per URI."""
    try:
        found, root = fs.FileSystem.from_uri(hasty(folder))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{folder}: this place cannot be read ({first_line(error)})") from error
    return found, root.rstrip("/")


def hasty(folder: str) -> str:
    """A URI whose client fails soon: Google's retries for a quarter of an hour; here `retried` does it."""
    if not folder.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in folder:
        return folder
    return f"{folder}{'&' if '?' in folder else '?'}retry_limit_seconds={_GOOGLE_RETRY_S}"


def below(folder: str, *parts: str) -> str:
    """The folder or URI at a path below another; a URI keeps its query. Empty parts are ignored."""
    place, mark, query = folder.partition("?") if is_remote(folder) else (folder, "", "")
    return "/".join([place.rstrip("/"), *(part for part in parts if part)]) + mark + query


def above(folder: str) -> tuple[str, str]:
    """The parent folder or URI, and the name in it."""
    place, mark, query = folder.partition("?") if is_remote(folder) else (folder, "", "")
    parent, _, name = place.rstrip("/").rpartition("/")
    return parent + mark + query, name


def names_below(place: fs.FileSystem, root: str) -> dict[str, bool]:
    """Names of the files and folders in a folder, and whether each is a folder; empty if it does not exist.

    Google's client lists a folder only if a marker for it exists, so all files below are listed.
    """
    flat = place.type_name == "gcs"
    found = place.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=flat))
    names: dict[str, bool] = {}
    for info in found:
        name, below, _ = info.path.removeprefix(f"{root}/").partition("/")
        if name and info.path.rstrip("/") != root:  # some stores list a marker of the folder itself
            names[name] = names.get(name, False) or bool(below) or info.type == fs.FileType.Directory
    return names


def retried(action: Callable[[], T], what: str) -> T:
    """The result of `action`, retried while it fails for reasons that may pass. Raises OSError."""
    patience = patience_s()
    start, pause = time.monotonic(), _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except OSError as error:
            waited = time.monotonic() - start
            if not is_transient(error) or waited + pause > patience:
                raise
            log.warning("%s: %s; trying again for %.0f s", what, first_line(error), patience - waited)
        # Spread out, so that many readers do not return at the same moment. No number depends on it.
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def patient(action: Callable[P, T]) -> Callable[P, T]:
    """`action`, which may safely be repeated from its start, by way of `retried`."""

    @wraps(action)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        return retried(lambda: action(*args, **kwargs), action.__qualname__)

    return repeated


def patience_s() -> float:
    """How long to retry a failing storage, in seconds. Raises DataError for a value that is not a number."""
    text = os.environ.get(PATIENCE, "")
    try:
        return float(text) if text else _DEFAULT_PATIENCE_S
    except ValueError:
        raise DataError(f"{PATIENCE}={text!r} is not a number of seconds") from None


def is_transient(error: OSError) -> bool:
    """Whether the same request may succeed later. A local disk's errors are taken at their word."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return bool(_TRANSIENT.search(str(error)))


def explained(folder: str, name: str, error: OSError) -> DataError:
    """One line for a storage error: what is missing or not allowed, and where to look."""
    where = f"{folder}: {name}"
    if isinstance(error, FileNotFoundError):
        return DataError(_missing_bucket(folder) or f"{where}: missing")
    if is_remote(folder) and _DENIED.search(str(error)):
        return DataError(f"{where}: {_credentials(folder)}")
    if is_remote(folder) and is_transient(error):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        at = f" at {endpoint}" if endpoint and folder.startswith("s3://") else ""
        return DataError(
            f"{where}: the storage{at} did not answer for {patience_s():.0f} s ({first_line(error)[:160]})"
        )
    return DataError(f"{where}: {first_line(error)}")


def check_bucket(folder: str) -> None:
    """Raises DataError if a remote folder's bucket does not exist."""
    if problem := _missing_bucket(folder):
        raise DataError(problem)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@lru_cache(maxsize=16)
def _missing_bucket(folder: str) -> str:
    if not is_remote(folder):
        return ""
    found, root = filesystem(folder)
    bucket = root.split("/", 1)[0]
    try:
        kind = retried(lambda: found.get_file_info(bucket).type, folder)
    except OSError:  # listing may be forbidden, which does not mean that it is missing
        return ""
    if kind != fs.FileType.NotFound:
        return ""
    return f"{folder}: there is no bucket {bucket!r} at this endpoint; create it, or check its name"


def _credentials(folder: str) -> str:
    if folder.startswith(("gs://", "gcs://")):
        return "access denied; check GOOGLE_APPLICATION_CREDENTIALS and the account's roles"
    has_file = (
        Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser().is_file()
    )
    if not os.environ.get("AWS_ACCESS_KEY_ID") and not has_file:
        return "access denied, and no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return (
        "access denied; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) "
        "and their permissions in this bucket"
    )
