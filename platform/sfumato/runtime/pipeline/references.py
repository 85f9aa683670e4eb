"""`${stage.output}` in a pipeline: what one stage makes, as an input of another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_PLACEHOLDER = re.compile(r"<([^.<>]+)\.[^<>]+>")


def find(content: Any) -> Iterator[tuple[str, str]]:
    """All (stage, output) that plain data refers to; the output is empty where the text has no dot."""
    if isinstance(content, str):
        for match in _REFERENCE.finditer(content):
            stage, _, output = match[1].strip().partition(".")
            yield stage, output
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from find(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from find(value)


def placeholder(stage: str, output: str) -> str:
    """Stands for what a stage has yet to make."""
    return f"<{stage}.{output}>"


def stage_of(text: str) -> str | None:
    """The stage that a placeholder stands for; None for any other text."""
    found = _PLACEHOLDER.fullmatch(text)
    return found[1] if found else None


def replace(content: Any, look_up: Callable[[str, str], str]) -> Any:
    """The same data with every reference replaced by what `look_up(stage, output)` gives."""
    if isinstance(content, str):

        def found(match: re.Match[str]) -> str:
            stage, _, output = match[1].strip().partition(".")
            return look_up(stage, output)

        return _REFERENCE.sub(found, content)
    if isinstance(content, Mapping):
        return {key: replace(value, look_up) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [replace(value, look_up) for value in content]
    return content
