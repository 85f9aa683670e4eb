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
from sfumato.evaluation.parallel_map import Spread, in_process
from sfumato.evaluation.statistics import Float64Array, Int64Array

TIE = 1e-12
"""Relative difference below which two squared distances count as equal: rounding of a float64 sum."""
MANY = 0.02
"""Share of a block that is decided pair by pair; if more is open, float64 decides the block first."""

Bools = npt.NDArray[np.bool_]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Memberships:
    """For N vectors a and M vectors b, each with its own ball.

    `balls_of_a_M`: how many balls of a hold b_j. `a_holds_N`: whether ball a_i holds any b.
    `a_inside_N`: whether any ball of b holds a_i.
    """

    balls_of_a_M: Int64Array
    a_holds_N: Bools
    a_inside_N: Bools


@dataclass(frozen=True, slots=True)
class Balls:
    """Two sets in view of one centre, with the squared radius of every vector's ball; below 0 for none."""

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
    shared = Balls(a, b, squared_radius_a_N * (1 + TIE), squared_radius_b_M * (1 + TIE))
    items = [(rows, columns) for rows in blocks(len(a), block) for columns in blocks(len(b), block)]
    result = Memberships(
        np.zeros(len(b), dtype=np.int64), np.zeros(len(a), dtype=np.bool_), np.zeros(len(a), dtype=np.bool_)
    )
    for (rows, columns), part in zip(items, spread(_count, shared, items), strict=True):
        result.balls_of_a_M[slice(*columns)] += part.balls_of_a_M
        result.a_holds_N[slice(*rows)] |= part.a_holds_N
        result.a_inside_N[slice(*rows)] |= part.a_inside_N
    return result


def _count(balls: Balls, item: tuple[Span, Span]) -> Memberships:
    rows, columns = item
    in_a, in_b = inside(balls, rows, columns, torch.float32)
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    return Memberships(
        np.bincount(in_a[1], minlength=width),
        np.bincount(in_a[0], minlength=height) > 0,
        np.bincount(in_b[0], minlength=height) > 0,
    )


Pairs = tuple[Int64Array, Int64Array]


def inside(balls: Balls, rows: Span, columns: Span, dtype: torch.dtype) -> tuple[Pairs, Pairs]:
    """The pairs (row, column) of the block inside balls of a, and those inside balls of b; exact."""
    squared = rounded_squared(balls.a, rows, balls.b, columns, dtype)
    slack_a = balls.a.slack_N(dtype)[slice(*rows)]
    slack_b = balls.b.slack_N(dtype)[slice(*columns)]
    reach_a, reach_b = balls.reach_a_N[slice(*rows)], balls.reach_b_M[slice(*columns)]
    # One slack for the entire other side, so that a threshold is a vector, not a block.
    in_a = _possible(squared, (reach_a + slack_a + slack_b.max())[:, None])
    in_b = _possible(squared, (reach_b + slack_b + slack_a.max())[None, :])
    sure_a = (reach_a - slack_a - slack_b.max())[in_a[0]]
    sure_b = (reach_b - slack_b - slack_a.max())[in_b[1]]
    open_a, open_b = _at(squared, in_a) > sure_a, _at(squared, in_b) > sure_b
    if dtype == torch.float32 and open_a.sum() + open_b.sum() > MANY * squared.numel():
        return inside(balls, rows, columns, torch.float64)

    def decided(pairs: Pairs, open_P: Bools, reach_P: Float64Array) -> Pairs:
        row, column = pairs
        inside_P = ~open_P
        exact = exact_squared(balls.a.x_ND, balls.b.x_ND, row[open_P] + rows[0], column[open_P] + columns[0])
        inside_P[open_P] = exact <= reach_P[open_P]
        return row[inside_P], column[inside_P]

    return decided(in_a, open_a, reach_a[in_a[0]]), decided(in_b, open_b, reach_b[in_b[1]])


def _possible(squared: Tensor, threshold: Float64Array) -> Pairs:
    """Pairs within the threshold. The slack leaves room for the rounding of the threshold itself."""
    row_P, column_P = (squared <= torch.from_numpy(threshold).to(squared.dtype)).nonzero(as_tuple=True)
    return row_P.numpy(), column_P.numpy()


def _at(squared: Tensor, pairs: Pairs) -> Float64Array:
    values: Float64Array = squared.numpy()[pairs].astype(np.float64)
    return values
