"""Who is stuck, judged from what ranks say of themselves and from their silence."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import nn

from sfumato.core.progress import Progress
from sfumato.runtime.training.backpressure import Brake
from sfumato.runtime.training.heartbeat import Beat, CodePosition, Pulses, Seen, Who, place_of
from sfumato.runtime.training.watchdog import judge

TIMEOUT_S = 10.0
COMPUTES = CodePosition("sfumato/families/gan/losses.py:7 penalty", waits=False)
WAITS = CodePosition(
    "torch/distributed/distributed_c10d.py:9 all_reduce, called in sfumato/x.py:1 sum", waits=True
)


def seen(
    *,
    silent: float = 0.5,
    still: float = 0.0,
    place: CodePosition = COMPUTES,
    counts: bool = True,
    rank: int = 0,
) -> Seen:
    return Seen(Who(1000 + rank, "10.0.0.7", b""), Beat(5, 640, counts, place), silent, still)


def test_ranks_that_get_on_are_left_alone() -> None:
    assert judge({}, TIMEOUT_S) is None
    assert judge({0: seen(still=9.9), 1: seen(still=9.9)}, TIMEOUT_S) is None
    # As long as one gets on, or does on its own what may take its time, others wait for it in good order.
    assert judge({0: seen(still=30.0, place=WAITS), 1: seen(still=1.0)}, TIMEOUT_S) is None
    assert judge({0: seen(still=30.0, place=WAITS), 1: seen(counts=False)}, TIMEOUT_S) is None


def test_a_rank_without_a_pulse_is_named_and_the_others_are_not_blamed() -> None:
    verdict = judge({0: seen(still=11.0, place=WAITS), 1: seen(silent=9.5, rank=1)}, TIMEOUT_S)
    assert verdict is not None and verdict.ranks == (1,) and verdict.frozen
    assert "rank 1 (process 1001 on 10.0.0.7) does not answer" in verdict.text
    assert f"rank 0 (process 1000 on 10.0.0.7) is waiting for others in {WAITS.text}" in verdict.text
    assert "640 images" in verdict.text and "parallel.hang_timeout" in verdict.text

    # Frozen in a checkpoint, where the time of those that answer is not limited.
    verdict = judge({0: seen(counts=False, place=WAITS), 1: seen(silent=10.1)}, TIMEOUT_S)
    assert verdict is not None and verdict.ranks == (1,)


def test_the_rank_that_computes_is_to_blame_not_those_that_wait_for_it() -> None:
    waiting = {rank: seen(still=10.2, place=WAITS, rank=rank) for rank in (0, 2, 3)}
    verdict = judge({**waiting, 1: seen(still=10.1, rank=1)}, TIMEOUT_S)
    assert verdict is not None and verdict.ranks == (1,) and not verdict.frozen
    assert f"rank 1 (process 1001 on 10.0.0.7) is stuck in {COMPUTES.text}; ranks 0 (process" in verdict.text
    # One that waits in a hook, with nobody to come, is no reason to wait for it.
    verdict = judge({0: seen(counts=False, place=WAITS), 1: seen(still=10.1, rank=1)}, TIMEOUT_S)
    assert verdict is not None and verdict.ranks == (1,)
    # Where all wait for each other, all are named.
    verdict = judge(waiting, TIMEOUT_S)
    assert verdict is not None and verdict.ranks == (0, 2, 3)


def test_a_thousand_ranks_are_told_in_one_line() -> None:
    ranks = {rank: seen(still=11.0, place=WAITS, rank=rank) for rank in range(1000)}
    verdict = judge({**ranks, 500: seen(silent=11.0, rank=500)}, TIMEOUT_S)
    assert verdict is not None and verdict.ranks == (500,)
    assert "and 991 more are waiting" in verdict.text and "\n" not in verdict.text and len(verdict.text) < 800


def test_time_counts_from_the_last_step_and_not_in_start_up_or_hooks() -> None:
    now = [0.0]
    pulses = Pulses(clock=lambda: now[0])
    who = Who(1, "here", b"")

    def after(seconds: float, steps: int, *, counts: bool, attempt: str = "a") -> tuple[float, float]:
        now[0] += seconds
        pulses.beat(attempt, 0, Beat(steps, steps * 8, counts, COMPUTES))
        found = pulses.seen()[1][0]
        return found.silent_s, found.still_s

    pulses.hello("a", 0, who)
    assert after(100, 0, counts=False) == (0, 0)  # the first step compiles
    assert after(5, 1, counts=True) == (0, 0)
    assert after(5, 1, counts=True) == (0, 5)
    assert after(50, 1, counts=False) == (0, 0)  # a checkpoint
    assert after(5, 1, counts=True) == (0, 5)
    assert after(1, 2, counts=True) == (0, 0)
    now[0] += 7
    assert pulses.seen()[1][0].silent_s == 7
    # The next group of workers begins anew, and what lives on of the last one is not heard.
    pulses.hello("b", 0, who)
    assert after(3, 9, counts=True, attempt="a") == (3, 3)
    pulses.goodbye("a", 0)
    assert pulses.seen()[1]
    pulses.goodbye("b", 0)
    assert pulses.seen() == ("b", {})


def test_a_place_names_the_line_and_the_one_of_ours_that_led_to_it() -> None:
    """A real thread in a real call of this package."""
    arrived, leave = threading.Event(), threading.Event()

    def agree(value: object) -> bool:
        arrived.set()
        return leave.wait(30)

    brake = Brake(None, 0, False, agree)
    thread = threading.Thread(target=brake, args=(Progress(1, 8, 80, 8),))
    thread.start()
    assert arrived.wait(30)
    place = place_of(sys._current_frames()[thread.ident or 0])
    leave.set()
    thread.join(600)
    inner, ours = place.text.split(", called in ")
    assert inner.startswith("threading.py:") and inner.endswith(" wait")
    assert ours.startswith("sfumato/runtime/training/backpressure.py:") and ours.endswith(" __call__")
    assert not place.waits and place_of(None).text == "no thread"


def here() -> CodePosition:
    return place_of(sys._getframe())


class _Backward(torch.autograd.Function):
    places: ClassVar[list[CodePosition]] = []

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        _Backward.places.append(place_of(sys._current_frames()[threading.main_thread().ident or 0]))
        return grad


class _Sent:
    """Looks where it is when it is sent to other ranks."""

    places: ClassVar[list[CodePosition]] = []

    def __reduce__(self) -> tuple[object, tuple[()]]:
        _Sent.places.append(here())
        return (_Sent, ())


def test_collectives_and_the_backward_pass_wait_for_others(tmp_path: Path) -> None:
    _Backward.apply(nn.Parameter(torch.ones(2))).sum().backward()  # type: ignore[no-untyped-call]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        dist.all_gather_object([None], _Sent())
    finally:
        dist.destroy_process_group()
    assert [place.waits for place in (*_Backward.places, *_Sent.places)] == [True, True]
    assert not here().waits
