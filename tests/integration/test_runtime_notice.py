"""When checkpoints are written on notice, and by whom that is decided."""

from __future__ import annotations

import pytest
import ray
from ray.train import PreemptionInfo

from sfumato.core.progress import Progress
from sfumato.runtime.training import progress_actor as boards
from sfumato.runtime.training.preemption import Departures, SaveOnNotice


def info(*nodes: str, deadline: float | None = 1_060.0) -> PreemptionInfo:
    return PreemptionInfo(
        deadline_ms=None if deadline is None else int(deadline * 1000),
        preempted_node_to_ranks={node: [0] for node in nodes},
    )


def test_once_at_the_notice_and_once_shortly_before_the_end() -> None:
    departures = Departures()
    assert departures.due(None, 1_000, 0) is None
    found = {at: departures.due(info("a"), at, took_s=2.0) for at in range(1_000, 1_060)}
    # 5 s, and three times what it took the last time, before the deadline; then they wait for it to pass.
    assert {at: until for at, until in found.items() if until is not None} == {1_000: 1_000, 1_049: 1_090}
    # A second node that goes away is another notice, with an earlier deadline of both.
    both = info("a", "b", deadline=1_090)
    times = [at for at in range(1_060, 1_100) if departures.due(both, at, 0.0) is not None]
    assert times == [1_060, 1_085]


def test_without_a_deadline_there_are_two_minutes() -> None:
    departures = Departures()
    unknown = info("a", deadline=None)
    found = [at for at in range(1_000, 1_300) if departures.due(unknown, at, 0.0) is not None]
    assert found == [1_000, 1_115]


class _Steps:
    """A rank whose steps take `seconds` each, by a clock of its own."""

    def __init__(self, board: object, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.images, self.saved, self.looks = 1_000.0, 0, list[int](), 0
        self.told: PreemptionInfo | None = None
        monkeypatch.setattr("ray.train.get_preemption_info", self._look)
        self._on_notice = SaveOnNotice(
            board,
            leads=True,
            agree=lambda value: value,
            save=lambda progress: self.saved.append(progress.images),
            clock=lambda: self.now,
        )

    def _look(self) -> PreemptionInfo | None:
        self.looks += 1
        return self.told

    def take(self, steps: int, seconds: float, total: int = 1_000_000) -> None:
        for _ in range(steps):
            self.now += seconds
            self.images += 8
            self._on_notice(Progress(self.images // 8, self.images, total, 8))


@pytest.mark.usefixtures("ray_local")
def test_ranks_look_once_a_second_whatever_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    board = boards.create("notice")
    rank = _Steps(board, monkeypatch)
    rank.take(10, seconds=3.0)
    assert rank.looks == 10  # a step that takes longer than a second is followed by a look
    rank.take(400, seconds=0.05)
    assert 10 + 18 <= rank.looks <= 10 + 22
    before = rank.looks
    rank.take(1_000, seconds=0.001)
    assert 9 <= rank.looks - before <= 20  # never after more than a hundred steps
    assert rank.saved == []

    # A request on the board is granted once.
    request = ray.get(board.ask_save.remote())
    rank.take(1_100, seconds=0.001)
    assert len(rank.saved) == 1 and ray.get(board.save_asked.remote()) == 0
    rank.take(3_000, seconds=0.001)
    assert len(rank.saved) == 1
    assert ray.get(board.ask_save.remote()) == request + 1

    # The last step has a checkpoint of its own.
    rank.take(1, seconds=5.0, total=rank.images + 8)
    assert len(rank.saved) == 1
