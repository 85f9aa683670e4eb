"""The time left: from the pace of the last minute, not from a mean that counts the start-up."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
from rich.console import Console

from sfumato.runtime.runs import display as shown
from sfumato.runtime.runs.display import WINDOW_S, Display, Pace


def test_start_up_does_not_count() -> None:
    pace = Pace()
    pace.mark(0, 0.0)
    for block in range(1, 11):
        pace.mark(64 * block, 30.0 + 2.0 * block)  # half a minute until the first block, then 32 a second
        left = pace.seconds_left(1_792, 30.0 + 2.0 * block)
        if block < 4:
            assert left is None, "too early to say"
        else:
            assert left == pytest.approx((1_792 - 64 * block) / 32)


def test_what_was_done_before_is_no_progress() -> None:
    pace = Pace()
    pace.mark(1_000, 0.0)  # a stage that goes on
    pace.mark(1_010, 10.0)
    assert pace.seconds_left(2_000, 10.0) is None
    pace.mark(1_020, 20.0)
    assert pace.seconds_left(2_000, 20.0) == pytest.approx(980)
    assert pace.seconds_left(2_000, 50.0) == pytest.approx(950), "time passes also without a report"
    assert pace.seconds_left(1_021, 50.0) == 0


def test_the_last_minute_decides() -> None:
    pace = Pace()
    for second in range(200):
        pace.mark(100 * second, float(second))
    for second in range(200, 200 + 2 * int(WINDOW_S)):
        pace.mark(19_900 + 10 * (second - 199), float(second))
    now = 199.0 + 2 * WINDOW_S
    assert pace.seconds_left(19_900 + 10 * int(2 * WINDOW_S) + 1_000, now) == pytest.approx(100)


def test_a_new_stage_starts_anew() -> None:
    pace = Pace()
    pace.mark(0, 0.0)
    pace.mark(50, 1.0)
    pace.mark(100, 10.0)
    assert pace.seconds_left(200, 10.0) is not None
    pace.mark(0, 11.0)
    assert pace.seconds_left(200, 11.0) is None


def test_the_display_tells_it_on_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(shown.time, "monotonic", lambda: now)
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=False, width=200)) as display:
        display.stage("evaluate")
        display.update(0, 1_792)
        for block in range(1, 21):
            now = 30.0 + 2.0 * block
            display.update(64 * block, 1_792)
    told = [line for line in out.getvalue().splitlines() if "left" in line]
    assert told[0] == "evaluate: 256 of 1,792  32/s  48 s left"
    seconds = [int(line.split()[-3]) for line in told]
    assert all(later < earlier for earlier, later in pairwise(seconds))


def test_every_part_of_a_stage_has_its_own_count_and_is_heard_every_five_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(shown.time, "monotonic", lambda: now)
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=False, width=200)) as display:
        display.stage("evaluate")
        for part in ("reference", "samples", "fd"):
            display.phase(part)
            for done in range(0, 1_001, 50):
                display.update(done, 1_000)
                now += 1.0
        display.phase("kid")
        now += 6.0
        display.phase("recall")
        display.done("1,000 samples")
    lines = out.getvalue().splitlines()
    assert "evaluate, reference: 500 of 1,000  50/s  10 s left" in lines
    assert "evaluate, samples: 950 of 1,000  50/s  1 s left" in lines
    assert "evaluate, recall: started" in lines and "evaluate, kid: started" not in lines
    assert lines[-1] == "✓ evaluate: 1,000 samples (69 s)"
    assert len(lines) == 2 + 69 // 5, "a line every five seconds, with those of the start and the end"
