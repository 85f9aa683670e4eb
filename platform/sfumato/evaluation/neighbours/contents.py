"""What each ball around the vectors of one set holds of another set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sfumato.evaluation.neighbours.balls import TIE, Balls, Span, inside
from sfumato.evaluation.neighbours.cloud import BLOCK, Cloud, Vectors, blocks
from sfumato.evaluation.parallel_map import Spread, in_process
from sfumato.evaluation.statistics import Float64Array, Int64Array


@dataclass(frozen=True, slots=True)
class Contents:
    """Of each of N balls: how many vectors it holds, a token that is equal for balls that hold the same ones
    (to 64 bits), and the last vector's row, -1 for none."""

    count_N: Int64Array
    token_N: npt.NDArray[np.uint64]
    last_N: Int64Array


def contents(
    a_ND: Vectors, b_MD: Vectors, squared_radius_N: Float64Array, *, spread: Spread = in_process
) -> Contents:
    """The vectors of b in the balls around a, surfaces included; exact, as `balls.memberships`."""
    a = Cloud.of(a_ND)
    b = Cloud.of(b_MD, a.centre_D)
    balls = Balls(a, b, squared_radius_N * (1 + TIE), np.full(len(b), -np.inf))
    token_M = np.random.default_rng(0).integers(2**64, size=len(b), dtype=np.uint64)
    items = [(rows, columns) for rows in blocks(len(a), BLOCK) for columns in blocks(len(b), BLOCK)]
    found = Contents(np.zeros(len(a), np.int64), np.zeros(len(a), np.uint64), np.full(len(a), -1))
    for (rows, _), part in zip(items, spread(_of_block, (balls, token_M), items), strict=True):
        found.count_N[slice(*rows)] += part.count_N
        found.token_N[slice(*rows)] ^= part.token_N
        found.last_N[slice(*rows)] = np.maximum(found.last_N[slice(*rows)], part.last_N)
    return found


def _of_block(shared: tuple[Balls, npt.NDArray[np.uint64]], item: tuple[Span, Span]) -> Contents:
    balls, token_M = shared
    rows, columns = item
    (row_P, column_P), _ = inside(balls, rows, columns, torch.float32)
    height = rows[1] - rows[0]
    found = Contents(np.bincount(row_P, minlength=height), np.zeros(height, np.uint64), np.full(height, -1))
    np.bitwise_xor.at(found.token_N, row_P, token_M[column_P + columns[0]])
    np.maximum.at(found.last_N, row_P, column_P + columns[0])
    return found
