"""What is shown is what was said: names stay whole for copying, brackets are no markup."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console
from waiting import wait_for

from sfumato.runtime.jobs.follow import progress_in
from sfumato.runtime.runs.display import Display

INSTALL = "pip install 'sfumato[deepspeed]'"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "say",
    [
        lambda display: display.note(INSTALL),
        lambda display: display.line(INSTALL),
        lambda display: display.skipped("train", INSTALL),
        lambda display: display.failed("train", INSTALL),
        lambda display: (display.stage("train"), display.done(INSTALL)),
        lambda display: display.table("figures", {"install": INSTALL}),
        lambda display: display.part("runs/a[old]").note(INSTALL),
        lambda display: display.table("runs/a[old]", {"images": INSTALL}),
    ],
)
def test_brackets_are_no_markup(say: Callable[[Display], object], terminal: bool) -> None:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=terminal, width=200)) as display:
        say(display)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert INSTALL in shown
    assert "runs/a" not in shown or "runs/a[old]" in shown


def test_the_name_over_a_narrow_table_stays_on_one_line() -> None:
    out = io.StringIO()
    name = "run digits-a-name-much-longer-than-the-table-is-wide-7d8491fd"
    Display(Console(file=out, width=80)).table(name, {"images": "48,000"})
    assert name in out.getvalue().splitlines()


def test_a_stage_that_says_nothing_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.runtime.runs.display.QUIET_S", 0.5)
    out = io.StringIO()
    with Display(Console(file=out, width=200)) as display:
        part = display.part("first")
        part.stage("train")
        wait_for("two lines", lambda: out.getvalue().count("s so far") >= 2, seconds=60)
        part.update(256, 512, {})
        wait_for("how far it is", lambda: "256 of 512  " in out.getvalue(), seconds=60)
        part.done("512 images")
        said = out.getvalue()
        display.stage("evaluate")
        display.phase("classifier")
        wait_for("another", lambda: "evaluate, classifier: " in out.getvalue(), seconds=60)
        display.drop()
    lines = [re.sub(r"[\d.]+ s", "N s", line) for line in said.splitlines()]
    assert lines[0] == "first: train: started" and lines[-1] == "✓ first: train: 512 images (N s)"
    assert set(lines[1:-1]) == {"first: train: N s so far", "first: train: 256 of 512  N s so far"}
    assert all(progress_in(line) for line in said.splitlines()[1:-1]), "a line of progress to who follows it"
