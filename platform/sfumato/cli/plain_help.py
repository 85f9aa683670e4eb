"""Help pages without Python's type names: a flag has none, a value is TEXT, NUMBER or PATH."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from typer.core import TyperGroup

_WORDS = {"int": "NUMBER", "float": "NUMBER", "str": "TEXT", "path": "PATH", "Path": "PATH", "file": "PATH"}


class PlainGroup(TyperGroup):
    """The root command: all commands below it get plain help pages."""

    def get_params(self, ctx: Any) -> Any:
        return [_plainly(param) for param in super().get_params(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _with_plain_params(command)
        return command


def plain(label: str, *, argument: bool) -> str:
    """The help page's word for Typer's label of a type; an argument needs none, its name suffices."""
    inner = re.sub(r"^list\[(.*)\]$", r"\1", label.strip("<>")).removesuffix(" range")
    if argument or inner == "bool":
        return ""
    return _WORDS.get(inner, inner)


def _with_plain_params(command: Any) -> None:
    for below in getattr(command, "commands", {}).values():
        _with_plain_params(below)
    if not isinstance(command.get_params, partial):
        command.get_params = partial(_plain_params, command.get_params)


def _plain_params(params: Any, ctx: Any) -> list[Any]:
    return [_plainly(param) for param in params(ctx)]


def _plainly(param: Any) -> Any:
    shown = getattr(param, "display_type", None)  # older versions of Typer have no such label
    if shown is not None and not isinstance(shown, partial):
        param.display_type = partial(_shown, shown, param.param_type_name == "argument")
    return param


def _shown(shown: Any, argument: bool, ctx: Any) -> str:
    return plain(shown(ctx), argument=argument)
