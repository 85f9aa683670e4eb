"""Monotonic rational-quadratic splines (Gregory & Delbourgo 1982; Durkan et al. 2019, sec. 3.1 and app. A).

On [-bound, bound] a spline of K bins passes through K + 1 knots with a slope at each; outside it is the
identity, so the slopes at both ends are 1. Numbers without bounds give the bins: zeros are the identity.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST = 1e-3
"""The least width and height of a bin, as a share of the whole, and the least slope."""
_SHIFT = math.log(math.expm1(1 - LEAST))
"""softplus of this is 1 - LEAST: a slope of 1 from a zero."""


def parameters(bins: int) -> int:
    """Numbers that a spline of so many bins takes: widths, heights, and the slopes between bins."""
    return 3 * bins - 1


class _Bin(NamedTuple):
    """The bin that each value lies in: its lower left corner, its size and the slopes at its ends."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    slope: Tensor
    next_slope: Tensor


def forward(x: Tensor, raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """y and log dy/dx of each value; `raw` has `parameters(bins)` numbers for it on a last axis."""
    at = _find(x, raw, bound, inverse=False)
    place = (x.clamp(-bound, bound) - at.x) / at.width
    return _outside(x, bound, *_evaluate(at, place))


def inverse(y: Tensor, raw: Tensor, bound: float) -> Tensor:
    """x of each value: the root of a quadratic (ibid., eq. 6 to 8), in the form that does not cancel."""
    at = _find(y, raw, bound, inverse=True)
    up = y.clamp(-bound, bound) - at.y
    delta = at.height / at.width
    curve = at.next_slope + at.slope - 2 * delta
    a = up * curve + at.height * (delta - at.slope)
    b = at.height * at.slope - up * curve
    c = -delta * up
    place = 2 * c / (-b - (b.square() - 4 * a * c).clamp_min(0).sqrt())
    x = at.x + place * at.width
    return torch.where(y.abs() <= bound, x, y)


def _evaluate(at: _Bin, place: Tensor) -> tuple[Tensor, Tensor]:
    """ibid., eq. 4 and 5."""
    delta, inner = at.height / at.width, place * (1 - place)
    below = delta + (at.next_slope + at.slope - 2 * delta) * inner
    y = at.y + at.height * (delta * place.square() + at.slope * inner) / below
    above = at.next_slope * place.square() + 2 * delta * inner + at.slope * (1 - place).square()
    return y, 2 * delta.log() + above.log() - 2 * below.log()


def _outside(x: Tensor, bound: float, y: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
    inside = x.abs() <= bound
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


def _find(value: Tensor, raw: Tensor, bound: float, *, inverse: bool) -> _Bin:
    bins = (raw.shape[-1] + 1) // 3
    widths, heights, slopes = torch.split(raw, [bins, bins, bins - 1], dim=-1)
    x, y = _knots(widths, bound), _knots(heights, bound)
    inner = F.softplus(slopes + _SHIFT) + LEAST
    slope = F.pad(inner, (1, 1), value=1.0)
    knots = y if inverse else x
    number = (value.clamp(-bound, bound)[..., None] >= knots[..., 1:-1]).sum(-1, keepdim=True)

    def at(values: Tensor, ahead: int = 0) -> Tensor:
        return values.gather(-1, number + ahead)[..., 0]

    return _Bin(at(x), at(y), at(x, 1) - at(x), at(y, 1) - at(y), at(slope), at(slope, 1))


def _knots(raw: Tensor, bound: float) -> Tensor:
    """The K + 1 places from -bound to bound."""
    share = LEAST + (1 - LEAST * raw.shape[-1]) * torch.softmax(raw, dim=-1)
    inner = share.cumsum(-1)[..., :-1]
    return 2 * bound * F.pad(F.pad(inner, (1, 0)), (0, 1), value=1.0) - bound
