"""Which vectors of two sets lie in the balls around the vectors of the other set.

A ball reaches to its centre's k-th nearest neighbour in the centre's own set and includes its surface.
Precision, recall, density and coverage are counts of such memberships; one pass over the distances
between the sets gives them together.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    more_reaches_a: tuple[Float64Array, ...] = ()
    """Other radii of a's balls."""


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
    radii = [squared_radius_a_N]
    return memberships_by_radius(a_ND, b_MD, radii, squared_radius_b_M, spread=spread, block=block)[0]


def memberships_by_radius(
    a_ND: Vectors,
    b_MD: Vectors,
    squared_radii_a: Sequence[Float64Array],
    squared_radius_b_M: Float64Array,
    *,
    spread: Spread = in_process,
    block: int = BLOCK,
) -> list[Memberships]:
    """The same for several radii of a's balls, each [N], in one pass over the pairs."""
    a = Cloud.of(a_ND)
    b = Cloud.of(b_MD, a.centre_D)
    first, *others = (radius_N * (1 + TIE) for radius_N in squared_radii_a)
    shared = Balls(a, b, first, squared_radius_b_M * (1 + TIE), tuple(others))
    items = [(rows, columns) for rows in blocks(len(a), block) for columns in blocks(len(b), block)]
    results = [
        Memberships(np.zeros(len(b), np.int64), np.zeros(len(a), np.bool_), np.zeros(len(a), np.bool_))
        for _ in squared_radii_a
    ]
    for (rows, columns), parts in zip(items, spread(_count, shared, items), strict=True):
        for result, part in zip(results, parts, strict=True):
            result.balls_of_a_M[slice(*columns)] += part.balls_of_a_M
            result.a_holds_N[slice(*rows)] |= part.a_holds_N
            result.a_inside_N[slice(*rows)] |= part.a_inside_N
    return results


def _count(balls: Balls, item: tuple[Span, Span]) -> list[Memberships]:
    rows, columns = item
    *in_each_a, in_b = _inside(balls, rows, columns, torch.float32)
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    a_inside_N = np.bincount(in_b[0], minlength=height) > 0
    return [
        Memberships(
            np.bincount(in_a[1], minlength=width), np.bincount(in_a[0], minlength=height) > 0, a_inside_N
        )
        for in_a in in_each_a
    ]


Pairs = tuple[Int64Array, Int64Array]


def inside(balls: Balls, rows: Span, columns: Span, dtype: torch.dtype) -> tuple[Pairs, Pairs]:
    """The pairs (row, column) of the block inside balls of a, and those inside balls of b; exact."""
    in_a, *_, in_b = _inside(balls, rows, columns, dtype)
    return in_a, in_b


def _inside(balls: Balls, rows: Span, columns: Span, dtype: torch.dtype) -> list[Pairs]:
    """The pairs inside balls of a, for each of their radii, and those inside balls of b."""
    squared = rounded_squared(balls.a, rows, balls.b, columns, dtype)
    slack_a = balls.a.slack_N(dtype)[slice(*rows)]
    slack_b = balls.b.slack_N(dtype)[slice(*columns)]
    # One slack for the entire other side, so that a threshold is a vector, not a block.
    sides = [
        _Side(reach_N[slice(*rows)], slack_a + slack_b.max(), axis=0)
        for reach_N in (balls.reach_a_N, *balls.more_reaches_a)
    ]
    sides.append(_Side(balls.reach_b_M[slice(*columns)], slack_b + slack_a.max(), axis=1))
    found = [side.possible(squared) for side in sides]
    unsure = [side.unsure(squared, pairs) for side, pairs in zip(sides, found, strict=True)]
    if dtype == torch.float32 and any(open_P.sum() > MANY * squared.numel() for open_P in unsure):
        return _inside(balls, rows, columns, torch.float64)

    def decided(side: _Side, pairs: Pairs, open_P: Bools) -> Pairs:
        row, column = pairs
        inside_P = ~open_P
        exact = exact_squared(balls.a.x_ND, balls.b.x_ND, row[open_P] + rows[0], column[open_P] + columns[0])
        inside_P[open_P] = exact <= side.reach[pairs[side.axis][open_P]]
        return row[inside_P], column[inside_P]

    return [decided(*each) for each in zip(sides, found, unsure, strict=True)]


@dataclass(frozen=True, slots=True)
class _Side:
    """The balls around a block's rows (axis 0) or columns (1): squared radii, and distances' rounding."""

    reach: Float64Array
    slack: Float64Array
    axis: int

    def possible(self, squared: Tensor) -> Pairs:
        """Pairs that may be inside."""
        threshold = self.reach + self.slack
        return _possible(squared, threshold[:, None] if self.axis == 0 else threshold[None, :])

    def unsure(self, squared: Tensor, pairs: Pairs) -> Bools:
        """Which of them rounding leaves open."""
        return _at(squared, pairs) > (self.reach - self.slack)[pairs[self.axis]]


def _possible(squared: Tensor, threshold: Float64Array) -> Pairs:
    """Pairs within the threshold. The slack leaves room for the rounding of the threshold itself."""
    row_P, column_P = (squared <= torch.from_numpy(threshold).to(squared.dtype)).nonzero(as_tuple=True)
    return row_P.numpy(), column_P.numpy()


def _at(squared: Tensor, pairs: Pairs) -> Float64Array:
    values: Float64Array = squared.numpy()[pairs].astype(np.float64)
    return values
