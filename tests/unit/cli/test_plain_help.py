"""No help page has Python's names of types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from sfumato.cli import app
from sfumato.cli.plain_help import plain

PYTHON = re.compile(r"<\w+|\b(None|bool|BOOLEAN|tuple|dict|str|int|float|True|False)\b|list\[")


def paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from paths(below, (*path, name))


@pytest.mark.parametrize("path", list(paths(get_command(app))), ids=" ".join)
def test_a_help_page_speaks_no_python(path: tuple[str, ...]) -> None:
    found = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert found.exit_code == 0, found.output
    assert not [line for line in found.output.splitlines() if PYTHON.search(line)]


def test_values_are_named_and_flags_are_not() -> None:
    labels = ("<bool>", "<int range>", "<list[Path]>", "<fail|skip>")
    assert [plain(label, argument=False) for label in labels] == ["", "NUMBER", "PATH", "fail|skip"]
    assert plain("<path>", argument=True) == ""
    page = CliRunner().invoke(app, ["sample", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert re.search(r"--num +NUMBER", page) and re.search(r"--overwrite +Replace", page)
