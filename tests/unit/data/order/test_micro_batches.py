"""How a global batch is cut for ranks and micro-batches."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sfumato.data.reading.batches import plan, problems
from sfumato.errors import ConfigError


@st.composite
def combinations(draw: st.DrawFn) -> tuple[int, int, int, int | None]:
    streams = draw(st.integers(1, 12))
    share = draw(st.integers(1, 12))
    micro = draw(st.none() | st.integers(1, share * streams))
    workers = draw(st.integers(1, streams))
    assume(not problems(share * streams, streams, workers, micro))
    return share * streams, streams, workers, micro


@given(combinations())
@settings(max_examples=300, deadline=None)
def test_ranks_cover_every_row_once(case: tuple[int, int, int, int | None]) -> None:
    batch, streams, workers, micro = case
    rows = []
    for rank in range(workers):
        for cut in plan(batch, streams, workers, rank, micro):
            assert micro is None or sum(piece.rows for piece in cut) <= micro
            for piece in cut:
                assert piece.stream % workers == rank
                rows += [(piece.stream, row) for row in range(piece.first, piece.first + piece.rows)]
    assert sorted(rows) == [(s, r) for s in range(streams) for r in range(batch // streams)]


@given(combinations())
@settings(max_examples=300, deadline=None)
def test_micro_batches_do_not_depend_on_the_workers(case: tuple[int, int, int, int | None]) -> None:
    batch, streams, workers, micro = case
    if micro is None or (micro > batch // streams and (batch // micro) % workers):
        return  # the documented exception: the number of workers does not divide that of the groups
    alone = plan(batch, streams, 1, 0, micro)
    together = [cut for rank in range(workers) for cut in plan(batch, streams, workers, rank, micro)]
    assert sorted(alone, key=str) == sorted(together, key=str)
    assert all(sum(piece.rows for piece in cut) == micro for cut in alone)


def test_two_workers_do_what_one_does_in_two_passes() -> None:
    assert plan(128, 8, 1, 0, 64) == [*plan(128, 8, 2, 0), *plan(128, 8, 2, 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((100, 8, 1, None), ["train.batch=100", "104"]),
        ((4, 8, 1, None), ["train.batch=4", "nearest is 8"]),
        ((128, 8, 9, None), ["parallel.workers=9", "8 workers"]),
        ((128, 8, 2, 30), ["train.micro_batch=30", "nearest is 32"]),
        ((128, 8, 2, 256), ["train.micro_batch=256", "nearest is 128"]),
        ((128, 8, 2, 48), ["train.micro_batch=48", "nearest is 32"]),
    ],
)
def test_impossible_combinations_name_field_and_mend(
    arguments: tuple[int, int, int, int | None], words: list[str]
) -> None:
    (line,) = problems(*arguments)
    assert all(word in line for word in words), line
    batch, streams, workers, micro = arguments
    with pytest.raises(ConfigError):
        plan(batch, streams, workers, 0, micro)


def test_all_problems_are_told_at_once() -> None:
    assert len(problems(100, 8, 9, None, samples=5)) == 3
    assert problems(128, 8, 8, 16, samples=8) == []
