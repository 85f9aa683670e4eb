"""What is in each picture, drawn from (seed, row) alone, for many pictures at once.

A picture's category is that of its first caption, and every category comes equally often. Layouts are drawn
until one is allowed: objects of one colour keep two pixels apart, others may cover a little of one another,
where a caption says how two objects lie they lie clearly so, and pictures for training have none of the
held-out combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfumato.data.shapes.draws import F64, I64, uniforms
from sfumato.data.shapes.vocabulary import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    COMBINING,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    MOST,
    SHAPES,
    SIZES,
    Category,
    Part,
)

CLEAR = 1.5
"""How many times further apart along one axis than along the other two objects are if one is said to be left
of the other."""
_COVERED = 0.15
_LAYOUTS, _ROUNDS, _SMALL_FROM = 32, 400, 3
Mask = NDArray[np.bool_]
_PAIR_SC = np.array([[(colour, shape) in HELD_OUT_PAIRS for colour in COLOURS] for shape in SHAPES])
_PAIRS = np.argwhere(_PAIR_SC)
_TRIPLES = [(SHAPES.index(a), relation, SHAPES.index(b)) for a, relation, b in sorted(HELD_OUT_RELATIONS)]


@dataclass(frozen=True)
class Scenes:
    """Objects of N pictures of side `size`, farthest first; entries from `count_N` on mean nothing.

    `shape_NK`, `colour_NK`, `size_NK` number the names of the vocabulary, `corner_NKA` are the pixels (x, y)
    of the upper left corners of their boxes, `held_out_N` says which pictures show a held-out combination.
    """

    size: int
    row_N: I64
    category_N: Sequence[Category]
    held_out_N: Mask
    count_N: I64
    shape_NK: I64
    colour_NK: I64
    size_NK: I64
    corner_NKA: I64
    background_N: I64

    @property
    def centre_NKA(self) -> F64:
        """Middles (x, y) of the boxes, as shares of the picture's side."""
        centre: F64 = (self.corner_NKA + sides(self.size)[self.size_NK][..., None] / 2) / self.size
        return centre


def sides(size: int) -> I64:
    """Pixels of the sides of the boxes, by size's number, in a picture of this side."""
    return np.array([round(share * size) for share in SIZES.values()], np.int64)


def scenes(
    seed: int, row_N: I64, part: Part, size: int, categories: Sequence[Category] = CATEGORIES
) -> Scenes:
    """The pictures of these rows, of the categories in turn; held-out ones of those that can combine."""
    held_out_N = _held_out(row_N, part)
    turn_N = row_N // 2 if part == "both" else row_N
    turns = {False: categories, True: [name for name in categories if name in COMBINING]}
    category_N = [
        turns[held][turn % len(turns[held])]
        for turn, held in zip(turn_N.tolist(), held_out_N.tolist(), strict=True)
    ]
    draw_NU = uniforms(seed, "objects", row_N, 4)
    count_N = _counts(category_N, draw_NU[:, 0])
    named_N = np.array([name == "position" for name in category_N]) & held_out_N & (draw_NU[:, 1] < 0.5)
    triple_N = np.where(named_N, (draw_NU[:, 2] * len(_TRIPLES)).astype(np.int64), -1)
    alike_N = np.array([name == "counting" for name in category_N])
    shape_NK, colour_NK = _looks(seed, row_N, held_out_N, triple_N, alike_N)
    clear_N = np.array([name == "position" for name in category_N])
    size_NK, corner_NKA = _laid_out(
        _Wish(seed, row_N, size, count_N, shape_NK, colour_NK, clear_N, alike_N, held_out_N, triple_N)
    )
    background_N = (draw_NU[:, 3] * len(BACKGROUNDS)).astype(np.int64)
    return Scenes(
        size,
        row_N,
        category_N,
        held_out_N,
        count_N,
        shape_NK,
        colour_NK,
        size_NK,
        corner_NKA,
        background_N,
    )


def _held_out(row_N: I64, part: Part) -> Mask:
    if part == "both":
        return np.equal(row_N % 2, 1)
    return np.full(len(row_N), part == "held_out")


def _counts(category_N: Sequence[Category], draw_N: F64) -> I64:
    ranges = {"single_object": (1, 1), "colours": (1, 1), "counting": (2, MOST), "several_objects": (3, MOST)}
    low_N, high_N = np.array([ranges.get(name, (2, 2)) for name in category_N]).T
    counts: I64 = low_N + (draw_N * (high_N - low_N + 1)).astype(np.int64)
    return counts


def _looks(seed: int, row_N: I64, held_out_N: Mask, triple_N: I64, alike_N: Mask) -> tuple[I64, I64]:
    """Shapes and colours [N, K]: all different in a picture, or all alike. In held-out pictures the first
    object is of a held-out pair, or the first two are of a held-out relation."""
    rows = np.arange(len(row_N))
    draw_NKS = uniforms(seed, "shapes", row_N, MOST * len(SHAPES)).reshape(-1, MOST, len(SHAPES))
    draw_NKC = uniforms(seed, "colours", row_N, MOST * len(COLOURS)).reshape(-1, MOST, len(COLOURS))
    pair_N2 = _PAIRS[(uniforms(seed, "pair", row_N, 1)[:, 0] * len(_PAIRS)).astype(np.int64)]
    paired_N = held_out_N & (triple_N < 0)
    triple_N2 = np.array([[a, b] for a, _, b in _TRIPLES])[triple_N]
    shape_NK = np.zeros((len(rows), MOST), np.int64)
    colour_NK = np.zeros((len(rows), MOST), np.int64)
    for k in range(MOST):
        shape_N = draw_NKS[:, k].argmax(1)
        if k == 0:
            shape_N = np.where(paired_N, pair_N2[:, 0], shape_N)
        if k < 2:
            shape_N = np.where(triple_N >= 0, triple_N2[:, k], shape_N)
        draw_NC = np.where(_PAIR_SC[shape_N], -1, draw_NKC[:, k])
        colour_N = draw_NC.argmax(1)
        if k == 0:
            colour_N = np.where(paired_N, pair_N2[:, 1], colour_N)
        shape_NK[:, k], colour_NK[:, k] = shape_N, colour_N
        draw_NKS[rows, :, shape_N] = -1
        if k == 0:
            later = triple_N >= 0
            draw_NKS[later, :, triple_N2[later, 1]] = -1
        draw_NKC[rows, :, colour_N] = -1
    first = np.zeros(MOST, np.int64)
    return (
        np.where(alike_N[:, None], shape_NK[:, first], shape_NK),
        np.where(alike_N[:, None], colour_NK[:, first], colour_NK),
    )


@dataclass(frozen=True)
class _Wish:
    """What is to be laid out."""

    seed: int
    row_N: I64
    size: int
    count_N: I64
    shape_NK: I64
    colour_NK: I64
    clear_N: Mask
    alike_N: Mask
    held_out_N: Mask
    triple_N: I64

    def of(self, rows: I64) -> _Wish:
        """Of some of the pictures."""
        arrays = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return _Wish(self.seed, size=self.size, **arrays)


def _laid_out(wish: _Wish) -> tuple[I64, I64]:
    """Sizes [N, K] and corners [N, K, 2]: for each picture the first allowed layout of those drawn for it."""
    size_NK = np.zeros((len(wish.row_N), MOST), np.int64)
    corner_NKA = np.zeros((len(wish.row_N), MOST, 2), np.int64)
    open_rows = np.arange(len(wish.row_N))
    for turn in range(_ROUNDS):
        part = wish.of(open_rows)
        sizes, corners, allowed_NL = _round(part, turn)
        done, which = allowed_NL.any(1), allowed_NL.argmax(1)
        rows = open_rows[done]
        size_NK[rows] = sizes[done, which[done]]
        corner_NKA[rows] = corners[done, which[done]]
        open_rows = open_rows[~done]
        if not len(open_rows):
            return size_NK, corner_NKA
    raise AssertionError(f"no layout for rows {wish.row_N[open_rows][:4].tolist()}")


def _round(wish: _Wish, turn: int) -> tuple[I64, I64, Mask]:
    """Layouts [N, L, K], and which of them [N, L] are allowed."""
    shape = (len(wish.row_N), _LAYOUTS, MOST, 3)
    draw = uniforms(wish.seed, f"layout {turn}", wish.row_N, _LAYOUTS * MOST * 3).reshape(shape)
    sizes = (draw[..., 2] * len(SIZES)).astype(np.int64)
    sizes = np.where(wish.alike_N[:, None, None], sizes[..., :1], sizes)
    if turn >= _SMALL_FROM:
        sizes = np.zeros_like(sizes)
    side = sides(wish.size)[sizes]
    corners = (draw[..., :2] * (wish.size - side + 1)[..., None]).astype(np.int64)
    return sizes, corners, _allowed(wish, side, corners)


def _allowed(wish: _Wish, side: I64, corners: I64) -> Mask:
    allowed = np.ones(side.shape[:2], bool)
    gap = wish.size // 16
    for i in range(MOST):
        for j in range(i + 1, MOST):
            there = (wish.count_N > j)[:, None]
            low = np.maximum(corners[:, :, i], corners[:, :, j])
            high = np.minimum(corners[:, :, i] + side[:, :, i, None], corners[:, :, j] + side[:, :, j, None])
            between = low - high
            apart = (between >= gap).any(-1)
            covered = np.maximum(-between, 0).prod(-1)
            little = covered <= _COVERED * np.minimum(side[:, :, i], side[:, :, j]) ** 2
            alike = (wish.colour_NK[:, i] == wish.colour_NK[:, j])[:, None]
            middle = corners + side[..., None] / 2
            away = middle[:, :, i] - middle[:, :, j]
            good = np.where(alike, apart, little) & _related(wish, away, i, j)
            clear = np.where(wish.clear_N[:, None], _clear(away) & (between >= 0).any(-1), True)
            allowed &= ~there | (good & clear)
    return allowed


def _clear(away: F64) -> Mask:
    far, near = np.abs(away).max(-1), np.abs(away).min(-1)
    clear: Mask = far >= CLEAR * near
    return clear


def _related(wish: _Wish, away: F64, i: int, j: int) -> Mask:
    """No held-out relation, not even nearly, unless it is what the picture is to show."""
    good = np.ones(away.shape[:2], bool)
    for number, (a, relation, b) in enumerate(_TRIPLES):
        along = 0 if relation == "left of" else 1
        for first, second, sign in ((i, j, -1), (j, i, 1)):
            is_pair = (wish.shape_NK[:, first] == a) & (wish.shape_NK[:, second] == b)
            before = sign * away[..., along] > 0
            nearly = before & (CLEAR * np.abs(away[..., along]) >= np.abs(away[..., 1 - along]))
            wanted = before & (np.abs(away[..., along]) >= CLEAR * np.abs(away[..., 1 - along]))
            asked = (wish.triple_N == number)[:, None]
            fits = np.where(asked, wanted, ~nearly | wish.held_out_N[:, None])
            good &= np.where(is_pair[:, None], fits, True)
    return good
