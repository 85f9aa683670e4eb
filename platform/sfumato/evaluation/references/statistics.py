"""Statistics of a reference in the usual exchange format: an `.npz` with `mu` and `sigma`.

`mu` [D] and `sigma` [D, D] are the mean and the unbiased covariance of features, as in the files of
pytorch-fid, ADM and many others. They allow only a Fréchet distance: all other metrics need the
images. The file does not record which features it is of, so the user has to name them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sfumato.core.batch import DataSpec
from sfumato.data.format.manifest import file_digest
from sfumato.errors import DataError
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.statistics import Moments
from sfumato.evaluation.store import write_bytes
from sfumato.evaluation.subjects.image_set import ImageBlock

USUAL_SAMPLES = 50_000
"""Assumed number of images behind a file that does not give it; the distance does not depend on it."""
ONLY = "fd"


@dataclass(frozen=True, eq=False)
class MomentsOnly(FeatureSet):
    """A set of which only the moments remain."""

    given: Moments = field(default_factory=lambda: Moments.empty(0))

    def __len__(self) -> int:
        return self.given.n

    @property
    def moments(self) -> Moments:
        """Those of the file."""
        return self.given


class StatisticsReference:
    """A reference known only by mean and covariance, for images of the kind `spec`.

    Raises DataError for any other file.
    """

    def __init__(self, path: str | Path, spec: DataSpec) -> None:
        self.path = Path(path)
        self._moments = read_statistics(self.path)
        self.spec = DataSpec(spec.channels, spec.height, spec.width)
        self.size = self._moments.n
        self.digest = file_digest(str(self.path.parent), self.path.name)

    def features(self, extractor: Extractor) -> FeatureSet:
        """The moments as a feature set. Raises DataError if they are of other features."""
        dim = len(self._moments.mean_D)
        if dim != extractor.dim:
            raise DataError(
                f"{self.path} has {dim} dimensions and features {extractor.name} {extractor.dim}: name the "
                "features that it was computed with (--features)"
            )
        return MomentsOnly(np.zeros((0, dim), np.float32), given=self._moments)

    def read(self, first: int, stop: int) -> ImageBlock:
        """Always raises: there are no images."""
        raise DataError(f"{self.path} holds only statistics, but this needs the reference's images")

    def parts(self, rows: int) -> Iterator[range]:
        """None."""
        return iter(())

    def blocks(self) -> Iterator[ImageBlock]:
        """Always raises, as `read` does."""
        yield self.read(0, 0)


def is_statistics(place: str) -> bool:
    """Whether a path is an .npz with `mu` and `sigma`; reads only its table of contents."""
    if not place.endswith(".npz") or not zipfile.is_zipfile(place):
        return False
    with zipfile.ZipFile(place) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


def read_statistics(path: Path) -> Moments:
    """The moments in a file. Raises DataError unless it holds a mean with its covariance."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            mu_D, sigma_DD = (np.asarray(archive[name], np.float64) for name in ("mu", "sigma"))
            samples = int(archive["n"]) if "n" in archive else USUAL_SAMPLES
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: no statistics with mu and sigma: {str(error).splitlines()[0]}") from None
    if mu_D.ndim != 1 or sigma_DD.shape != (len(mu_D), len(mu_D)):
        raise DataError(
            f"{path}: mu has shape {mu_D.shape} and sigma {sigma_DD.shape}; wanted [D] and [D, D]"
        )
    if not (np.isfinite(mu_D).all() and np.isfinite(sigma_DD).all()):
        raise DataError(f"{path}: mu or sigma is not finite")
    if samples < 2 or not np.allclose(sigma_DD, sigma_DD.T, rtol=1e-4, atol=1e-6):
        raise DataError(
            f"{path}: sigma is not a covariance of 2 samples or more: it is not symmetric, or n={samples}"
        )
    return Moments(samples, mu_D, sigma_DD * (samples - 1))


def write_statistics(path: Path, moments: Moments) -> None:
    """`mu`, `sigma` and the number of images `n`, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, mu=moments.mean_D, sigma=moments.covariance_DD, n=np.int64(moments.n))
    write_bytes(path, buffer.getvalue())
