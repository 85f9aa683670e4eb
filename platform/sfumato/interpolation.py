"""What is wrong with `${...}` in a YAML file, or with the file itself, in the words of its author."""

from __future__ import annotations

import re

from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

_VARIABLE = re.compile(r"Environment variable '([^']*)' not found")
_KEY = re.compile(r"key '([^']*)'")
_TYPE = re.compile(r"type (\S+)")


def explained(error: OmegaConfBaseException) -> str:
    """One line: the field, what its value refers to, how to mend it."""
    said = (str(error).splitlines() or [type(error).__name__])[0]
    if found := _VARIABLE.search(said):
        line = f"environment variable {found[1]} is not set; set it, or write ${{oc.env:{found[1]},DEFAULT}}"
    elif isinstance(error, InterpolationKeyError) and (found := _KEY.search(said)):
        line = f"${{{found[1]}}} refers to a field that is not there; variables are ${{oc.env:NAME}}"
    elif isinstance(error, UnsupportedInterpolationType) and (found := _TYPE.search(said)):
        line = f"${{{found[1]}:...}} is unknown; there are ${{FIELD}} and ${{oc.env:NAME}}"
    elif isinstance(error, GrammarParseError):
        line = "the text after ${ is not complete; write ${FIELD} or ${oc.env:NAME}"
    else:
        line = said.rpartition("raised while resolving interpolation: ")[2]
    return f"{error.full_key}: {line}" if getattr(error, "full_key", None) else line


def invalid(error: Exception) -> str:
    """Why a file cannot be read, on one line."""
    if isinstance(error, GrammarParseError):
        return explained(error)
    said = " ".join(str(error).split())
    if "node expansion exceeds" in said:
        return "its anchors and aliases (& and *) stand for more than 10,000 values; write fewer"
    return said
