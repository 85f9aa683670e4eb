"""Which vectors of two sets lie in the balls around the vectors of the other set.

A ball reaches to its centre's k-th nearest neighbour in the centre's own set and includes its surface.
Precision, recall, density and coverage are counts of such memberships; one pass over the distances
between the sets gives them together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfumato.evaluation.neighbours.cloud import BLOCK, Cloud, Vectors, blocks, exact_squared, rounded_squared
from sfumato.evaluation.spread import Spread, in_process
from sfumato.evaluation.statistics import Float64Array, Int64Array

TIE = 1e-12
"""Relative difference below which two squared distances count as equal: rounding of a float64 sum."""
MANY = 0.02
"""Part of a block that is decided pair by pair; where more is open, float64 decides the block first."""

Bools = npt.NDArray[np.bool_]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Memberships:
    """For N vectors a and M vectors b with balls of their own.

    `balls_of_a_M`: how many balls of a hold b_j. `a_holds_N`: whether ball a_i holds any b.
    `a_inside_N`: whether any ball of b holds a_i.
    """

    balls_of_a_M: Int64Array
    a_holds_N: Bools
    a_inside_N: Bools


@dataclass(frozen=True, slots=True)
class _Balls:
    a: Cloud
    b: Cloud
    reach_a_N: Float64Array
    reach_b_M: Float64Array


def memberships(
    a_ND: Vectors,
    b_MD: Vectors,
    squared_radius_a_N: Float64Array,
    squared_radius_b_M: Float64Array,
    *,
    spread: Spread = in_process,
    block: int = BLOCK,
) -> Memberships:
    """Counts over all pairs, exact in float64. Radii are squared, as `nearest_others` gives them."""
    a = Cloud.of(a_ND)
    b = Cloud.of(b_MD, a.centre_D)
    shared = _Balls(a, b, squared_radius_a_N * (1 + TIE), squared_radius_b_M * (1 + TIE))
    items = [(rows, columns) for rows in blocks(len(a), block) for columns in blocks(len(b), block)]
    result = Memberships(
        np.zeros(len(b), dtype=np.int64), np.zeros(len(a), dtype=np.bool_), np.zeros(len(a), dtype=np.bool_)
    )
    for (rows, columns), part in zip(items, spread(_count, shared, items), strict=True):
        result.balls_of_a_M[slice(*columns)] += part.balls_of_a_M
        result.a_holds_N[slice(*rows)] |= part.a_holds_N
        result.a_inside_N[slice(*rows)] |= part.a_inside_N
    return result


def _count(balls: _Balls, item: tuple[Span, Span]) -> Memberships:
    rows, columns = item
    reach_a = balls.reach_a_N[slice(*rows), None]
    reach_b = balls.reach_b_M[None, slice(*columns)]
    in_a, in_b = _inside(balls, rows, columns, (reach_a, reach_b), torch.float32)
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    return Memberships(
        np.bincount(in_a[1], minlength=width),
        np.bincount(in_a[0], minlength=height) > 0,
        np.bincount(in_b[0], minlength=height) > 0,
    )


Pairs = tuple[Int64Array, Int64Array]


def _inside(
    balls: _Balls, rows: Span, columns: Span, reaches: tuple[Float64Array, ...], dtype: torch.dtype
) -> list[Pairs]:
    """For every kind of ball the pairs (row, column) of the block that are inside, in order."""
    squared = rounded_squared(balls.a, rows, balls.b, columns, dtype)
    slack_a = balls.a.slack_N(dtype)[slice(*rows)]
    slack_b = balls.b.slack_N(dtype)[slice(*columns)]
    found = []
    for reach in reaches:
        # One slack for the block's other side keeps the thresholds one vector.
        slack = (slack_a[:, None] + slack_b.max()) if reach.shape[1] == 1 else slack_b[None] + slack_a.max()
        row_P, column_P = _where(squared, reach + slack)
        limit = reach - slack
        open_P = squared[row_P, column_P].double().numpy() > _at(limit, row_P, column_P)
        if dtype == torch.float32 and open_P.sum() > MANY * squared.numel():
            return _inside(balls, rows, columns, reaches, torch.float64)
        row, column = row_P.numpy(), column_P.numpy()
        inside_P = ~open_P
        exact = exact_squared(balls.a.x_ND, balls.b.x_ND, row[open_P] + rows[0], column[open_P] + columns[0])
        inside_P[open_P] = exact <= _at(reach, row_P, column_P)[open_P]
        found.append((row[inside_P], column[inside_P]))
    return found


def _where(squared: Tensor, threshold: Float64Array) -> tuple[Tensor, Tensor]:
    limit = torch.from_numpy(threshold).to(squared.dtype)
    row_P, column_P = (squared <= limit).nonzero(as_tuple=True)
    return row_P, column_P


def _at(values: Float64Array, row_P: Tensor, column_P: Tensor) -> Float64Array:
    picked: Float64Array = values[row_P.numpy(), 0] if values.shape[1] == 1 else values[0, column_P.numpy()]
    return picked
