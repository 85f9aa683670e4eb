"""A set of vectors, and blocks of squared distances with a bound on their rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfumato.evaluation.statistics import Float64Array, Int64Array

BLOCK = 1024
"""Rows and columns of a block of distances: 4 MiB in float32."""
PAIRS = 256
"""Pairs whose differences are computed at once: their rows stay in the cache."""
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}

Vectors = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Cloud:
    """Vectors [N, D], float32 or float64, seen from `centre_D`, which changes no distance and saves digits.

    `norm_N` are the squared lengths from there. Built by `of`.
    """

    x_ND: Vectors
    centre_D: Vectors
    norm_N: Float64Array

    @classmethod
    def of(cls, x_ND: Vectors, centre_D: Vectors | None = None) -> Cloud:
        """A cloud around its own mean, or around a centre that it shares with another."""
        if x_ND.ndim != 2:
            raise ValueError(f"features must be [N, D], got shape {x_ND.shape}")
        if x_ND.dtype not in (np.float32, np.float64):
            x_ND = x_ND.astype(np.float64)
        if centre_D is None:
            centre_D = x_ND.mean(axis=0, dtype=np.float64)
        centre_D = centre_D.astype(x_ND.dtype)
        norm_N = np.empty(len(x_ND))

        def measure(span: tuple[int, int]) -> None:
            centred = x_ND[slice(*span)].astype(np.float64)
            centred -= centre_D
            norm_N[slice(*span)] = np.einsum("nd,nd->n", centred, centred)

        _side_by_side(measure, list(blocks(len(x_ND), PAIRS)))
        return cls(x_ND, centre_D, norm_N)

    def __len__(self) -> int:
        return len(self.x_ND)

    def rows(self, index_M: Int64Array) -> Cloud:
        """Some of the vectors, seen from the same centre."""
        return Cloud(self.x_ND[index_M], self.centre_D, self.norm_N[index_M])

    def centred(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Vectors start .. stop - 1, moved: the difference is taken in the wider of the two precisions."""
        rows = self.x_ND[start:stop]
        wide = rows.astype(np.float64) if dtype == torch.float64 else rows
        return torch.from_numpy(wide - self.centre_D).to(dtype)

    def slack_N(self, dtype: torch.dtype) -> Float64Array:
        """This side's part of the bound on the rounding of a squared distance: it is at most s_i + s_j.

        A product of length D has an error of at most D u |a| |b|, with u the unit roundoff (Higham 2002,
        eq. 3.5), and 2 |a| |b| <= |a|^2 + |b|^2; 16 u cover the centring, the squared lengths and the sums.
        """
        roundoff = UNIT_ROUNDOFF[dtype]
        slack: Float64Array = (self.x_ND.shape[1] + 16) * roundoff * 1.01 * self.norm_N
        return slack


def blocks(rows: int, block: int = BLOCK) -> Iterator[tuple[int, int]]:
    """(first, one past the last) of consecutive blocks."""
    for start in range(0, rows, block):
        yield start, min(start + block, rows)


def rounded_squared(
    a: Cloud, rows: tuple[int, int], b: Cloud, columns: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Squared distances [rows, columns] of two clouds with one centre, each within its bound."""
    norm_a = torch.from_numpy(a.norm_N[slice(*rows)]).to(dtype)
    norm_b = torch.from_numpy(b.norm_N[slice(*columns)]).to(dtype)
    a_BD = a.centred(*rows, dtype)
    if a is b and rows == columns:
        x_BD = a_BD.numpy()  # NumPy sees that the product is symmetric, and computes half of it
        return torch.from_numpy(x_BD @ x_BD.T).mul_(-2).add_(norm_b[None, :]).add_(norm_a[:, None])
    b_BD = b.centred(*columns, dtype)
    return torch.addmm(norm_b[None, :], a_BD, b_BD.T, alpha=-2).add_(norm_a[:, None])


def exact_squared(a_ND: Vectors, b_MD: Vectors, row_P: Int64Array, column_P: Int64Array) -> Float64Array:
    """Squared distances [P] of given pairs in float64, from their differences: the same bits in any block."""
    squared_P = np.empty(len(row_P))

    def measure(span: tuple[int, int]) -> None:
        pairs = slice(*span)
        difference = a_ND[row_P[pairs]].astype(np.float64)
        difference -= b_MD[column_P[pairs]]
        squared_P[pairs] = np.einsum("pd,pd->p", difference, difference)

    _side_by_side(measure, list(blocks(len(row_P), PAIRS)))
    return squared_P


def _side_by_side(work: Callable[[tuple[int, int]], None], spans: Sequence[tuple[int, int]]) -> None:
    """On as many threads as torch may use here; NumPy releases the interpreter's lock meanwhile."""
    threads = min(torch.get_num_threads(), len(spans))
    if threads < 2:
        for span in spans:
            work(span)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, spans):
            pass
