"""What is shown is what was said: names stay whole for copying, brackets are no markup."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

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
