"""The queue on disk: order, offsets, torn lines, room, and what a request may carry."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.delivery import METRICS_A_REQUEST, groups
from sfumato.tracking.sender import locked
from sfumato.tracking.spool import Segment
from sfumato.tracking.store import TrackingStore


def test_events_come_back_in_order_from_where_sending_stopped(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path, limit_bytes=10_000)
    for number in range(5):
        assert segment.append({"kind": "tags", "values": {"n": number}})
    offsets = [end for _, end in segment.unsent()]
    segment.mark_sent(offsets[2])
    again = Segment(segment.folder)
    assert [event["values"]["n"] for event, _ in again.unsent()] == [3, 4]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path, limit_bytes=10_000)
    segment.append({"n": 1})
    log = segment.folder / "events.jsonl"
    log.write_bytes(log.read_bytes() + b'{"n": 2')
    assert [event for event, _ in segment.unsent()] == [{"n": 1}]
    log.write_bytes(log.read_bytes() + b'\n{"n": 3}\n')
    assert [event for event, _ in segment.unsent()] == [{"n": 1}, {"n": 3}]


def test_a_full_spool_takes_no_more_until_something_arrived(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path, limit_bytes=100)
    taken = [segment.append({"n": number, "text": "x" * 20}) for number in range(5)]
    assert taken == [True, True, False, False, False]
    assert segment.dropped == 3
    *_, (_, end) = segment.unsent()
    segment.mark_sent(end)
    assert segment.append({"n": 9})
    assert segment.keep(b"x" * 90, ".png") == "000001.png"
    assert segment.keep(b"x" * 20, ".png") is None
    segment.forget("000001.png")
    assert segment.keep(b"x" * 20, ".png") is not None


def test_a_disk_that_takes_nothing_raises_nothing(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path, limit_bytes=100)
    segment.remove()
    assert not segment.append({"n": 1})
    assert segment.keep(b"x", ".png") is None


def test_segments_are_numbered_and_sorted(tmp_path: Path) -> None:
    made = [Segment.create(tmp_path, limit_bytes=1) for _ in range(3)]
    made[0].remove()
    made.append(Segment.create(tmp_path, limit_bytes=1))
    assert [segment.folder for segment in Segment.all(tmp_path)] == [segment.folder for segment in made[1:]]


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    with locked(tmp_path, wait=True) as first, locked(tmp_path, wait=False) as second:
        assert (first, second) == (True, False)
    with locked(tmp_path, wait=False) as third:
        assert third


@given(st.lists(st.one_of(st.integers(1, METRICS_A_REQUEST), st.just("image")), max_size=30))
def test_groups_keep_order_and_size(kinds: list[int | str]) -> None:
    events = [
        (
            {"kind": "image", "file": str(number)}
            if size == "image"
            else {"kind": "metrics", "step": number, "values": dict.fromkeys(range(int(size)), 0.0)},
            number + 1,
        )
        for number, size in enumerate(kinds)
    ]
    made = list(groups(iter(events)))
    assert [event for some, _ in made for event in some] == [event for event, _ in events]
    for some, offset in made:
        assert len({event["kind"] for event in some}) == 1
        assert offset == events[[event for event, _ in events].index(some[-1])][1]
        assert some[0]["kind"] == "metrics" or len(some) == 1
        assert sum(len(event.get("values", ())) for event in some) <= METRICS_A_REQUEST


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (None, "sqlite:///{root}/mlflow.db"),
        ("sqlite:///runs/my.db", "sqlite:///{root}/runs/my.db"),
        ("sqlite:////srv/my.db", "sqlite:////srv/my.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_addresses_are_absolute(uri: str | None, expected: str, tmp_path: Path) -> None:
    store = TrackingStore.of(TrackingSettings(uri=uri), tmp_path)
    assert store.uri == expected.format(root=tmp_path.resolve())
    assert (store.artifacts is None) == (store.database is None)
