"""Mean and covariance of feature vectors, accumulated in float64 and mergeable (Chan, Golub & LeVeque 1979).

The scatter is kept around the running mean, not as a raw sum of outer products, which would cancel when
the mean is large next to the spread. Blocks added in index order give the same bits however many workers
computed them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Moments:
    """Sufficient statistics of n vectors: `mean_D`, and `scatter_DD`, the sum of (x - mean)(x - mean)^T."""

    n: int
    mean_D: Float64Array
    scatter_DD: Float64Array

    @classmethod
    def empty(cls, dim: int) -> Self:
        """The neutral element of `merge`."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, x_ND: npt.ArrayLike, chunk_rows: int = CHUNK_ROWS) -> Self:
        """Moments of the rows of `x_ND` (any real dtype), added in order, `chunk_rows` at a time."""
        x = np.asarray(x_ND)
        if x.ndim != 2:
            raise ValueError(f"features must be [N, D], got shape {x.shape}")
        total = cls.empty(x.shape[1])
        for start in range(0, len(x), chunk_rows):
            total = total.merge(cls._of_chunk(x[start : start + chunk_rows].astype(np.float64)))
        return total

    @classmethod
    def _of_chunk(cls, x_ND: Float64Array) -> Self:
        mean_D = x_ND.mean(axis=0)
        centred_ND = x_ND - mean_D
        return cls(len(x_ND), mean_D, centred_ND.T @ centred_ND)

    def merge(self, other: Self) -> Self:
        """Moments of both sets together (Chan et al. 1979, eq. 2.1)."""
        if self.mean_D.shape != other.mean_D.shape:
            raise ValueError(f"cannot merge {len(self.mean_D)} and {len(other.mean_D)} dimensions")
        n = self.n + other.n
        if n == 0:
            return self
        delta_D = other.mean_D - self.mean_D
        mean_D = self.mean_D + delta_D * (other.n / n)
        correction_DD = np.outer(delta_D, delta_D) * (self.n * other.n / n)
        return type(self)(n, mean_D, self.scatter_DD + other.scatter_DD + correction_DD)

    @property
    def covariance_DD(self) -> Float64Array:
        """The unbiased covariance (divided by n - 1), as every published FID implementation has it."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.n}")
        return self.scatter_DD / (self.n - 1)
