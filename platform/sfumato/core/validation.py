"""What is wrong with a configuration, in the words of whoever wrote it."""

from __future__ import annotations

import difflib

from pydantic import BaseModel, ValidationError

from sfumato.core.config import fields_at


def explain(error: ValidationError, root: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[str]:
    """One line for each problem: the dotted field, what is wrong, what was given, what would be legal."""
    lines = []
    for item in error.errors(include_url=False):
        path = [str(part) for part in (*prefix, *item["loc"])]
        where = ".".join(path)
        if item["type"] == "extra_forbidden":
            # Of several kinds that a field may hold, only the one that was chosen knows its keys.
            known = item.get("ctx", {}).get("known") or fields_at(root, [str(p) for p in item["loc"][:-1]])
            near = difflib.get_close_matches(path[-1], known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            lines.append(f"{where}: unknown key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{where}: required, but not given")
        elif item["type"] == "literal_error":
            expected = str(item.get("ctx", {}).get("expected", ""))
            legal = [part.strip(" '\"") for part in expected.replace(" or ", ",").split(",")]
            near = difflib.get_close_matches(str(item["input"]), legal, 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"{where}: got {item['input']!r}, expected {expected}{hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
            lines.append(f"{where}: {message[0].lower()}{message[1:]}{given}")
    return lines
