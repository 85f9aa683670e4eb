"""Finds the weights of feature extractors: by an option, an environment variable, or a download.

Nothing is downloaded unless requested, and a download is used only if its checksum is right.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from sfumato.core.drafts import beside
from sfumato.errors import CapabilityError

TIMEOUT = 60.0
MIB = 2**20


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A published file: its address, and the checksum that identifies it."""

    features: str
    variable: str
    url: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def locate(self, given: Path | None, cache: Path, *, download: bool) -> Path:
        """The file's path. `given` takes precedence over the environment variable, and that over the cache.

        Raises CapabilityError, in one line with the fix, if there is none.
        """
        named = given or (Path(value) if (value := os.environ.get(self.variable)) else None)
        if named is not None:
            if named.is_file():
                return named
            raise CapabilityError(
                f"features {self.features}: weights {str(named)!r} are not an existing file; {self._mend}"
            )
        kept = cache / self.name
        if kept.is_file():
            return kept
        if not download:
            raise CapabilityError(f"features {self.features} needs weights, none given; {self._mend}")
        self._fetch(kept)
        return kept

    @property
    def _mend(self) -> str:
        option = f"evaluate.feature_options.{self.features}"
        return (
            f"set {option}.weights=FILE or {self.variable}=FILE ({self.name}), or {option}.download=true "
            f"to fetch it ({self.size // MIB} MiB)"
        )

    def _fetch(self, kept: Path) -> None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(kept)
        with temporary.open("xb") as file:
            try:
                # The address is a constant of this package, and https.
                with urllib.request.urlopen(self.url, timeout=TIMEOUT) as answer:  # noqa: S310
                    shutil.copyfileobj(answer, file, MIB)
                file.flush()
                found = sha256_of(temporary)
                if found != self.sha256:
                    raise CapabilityError(
                        f"features {self.features}: the download from {self.url} has sha256 {found[:12]}..., "
                        f"expected {self.sha256[:12]}...: nothing was kept, get {self.name} elsewhere"
                    )
                os.replace(temporary, kept)
            except (urllib.error.URLError, TimeoutError) as error:
                raise CapabilityError(
                    f"features {self.features}: download of {self.url} failed ({error}); {self._mend}"
                ) from error
            finally:
                temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Checksum of a file, read once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
