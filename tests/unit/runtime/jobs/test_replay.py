"""Lines of streams that begin again are shown once."""

from __future__ import annotations

from sfumato.runtime.jobs.replay import Replay


def shown(*streams: tuple[str, list[str]]) -> list[str]:
    said: list[str] = []
    replay = Replay(said.append)
    for attempt, lines in streams:
        replay.open(attempt)
        for line in lines:
            replay(line)
    return said


def test_a_stream_that_was_cut_goes_on_where_it_ended() -> None:
    assert shown(("a", ["1", "2"]), ("a", ["1", "2", "3"]), ("a", ["1", "2", "3"])) == ["1", "2", "3"]


def test_equal_lines_are_lines() -> None:
    assert shown(("a", ["x", "x"]), ("a", ["x", "x", "x", "y", "x"])) == ["x", "x", "x", "y", "x"]


def test_a_new_submitter_says_something_else_first() -> None:
    first = ["wait", "submitted", "next steps", "train", "100"]
    second = ["wait", "wait", "still", "train", "100", "200"]
    assert shown(("a", first), ("a", second)) == [*first, "wait", "still", "200"]
    third = ["wait", "train", "100", "200", "300"]
    assert shown(("a", first), ("a", second), ("a", third)) == [*first, "wait", "still", "200", "300"]


def test_another_attempt_repeats_nothing() -> None:
    assert shown(("a", ["1", "2"]), ("b", ["1", "2"])) == ["1", "2", "1", "2"]
