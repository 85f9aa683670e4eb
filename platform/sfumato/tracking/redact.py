"""Keeps secrets out of what is logged, and turns a nested recipe into flat parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[hidden]"
LONGEST_VALUE = 500

_HIDE = (
    r"(?:\w*(?:password|passwd|secret)\w*"
    r"|(?:\w*[._-])?(?:token|pwd|credentials?|authorization|signature|(?:api|access|private)[_-]?key(?:[_-]?id)?))"
)
_SECRET_KEY = re.compile(_HIDE, re.IGNORECASE)
# scheme://user:pass@host; a lone user name may be a token.
_USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.IGNORECASE)
_QUERY = re.compile(rf"([?&](?:[\w.-]*-)?{_HIDE}=)[^&\s'\"]+", re.IGNORECASE)
_YAML_LINE = re.compile(
    rf"^(?P<key>[ \t-]*[\"']?(?:[\w.-]+[._-])?{_HIDE}[\"']?[ \t]*:)[ \t]+(?!null\b|~)\S.*$",
    re.IGNORECASE | re.MULTILINE,
)


def is_secret(key: str) -> bool:
    """Whether a setting of this (dotted) name holds a secret; `max_tokens` and `tokenizer` do not."""
    return _SECRET_KEY.fullmatch(key.rsplit(".", 1)[-1]) is not None


def clean_uri(text: str) -> str:
    """The text with user names, passwords and signatures of the URIs in it hidden."""
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USERINFO.sub(rf"\g<1>{HIDDEN}@", text))


def clean_yaml(text: str) -> str:
    """A YAML document with the values of secret keys and the credentials in URIs hidden."""
    return clean_uri(_YAML_LINE.sub(rf"\g<key> '{HIDDEN}'", text))


def clean(values: Mapping[str, object]) -> dict[str, str]:
    """Flat values as text, without secrets."""
    return {key: HIDDEN if is_secret(key) else clean_uri(str(value)) for key, value in values.items()}


def flat_params(nested: Mapping[str, Any]) -> dict[str, str]:
    """{"model": {"width": 64}} as {"model.width": "64"}, without secrets, long values clipped.

    The complete recipe is logged beside the parameters as a file.
    """
    params: dict[str, str] = {}
    _flatten("", nested, params)
    return params


def _flatten(prefix: str, nested: Mapping[str, Any], into: dict[str, str]) -> None:
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if value is not None and is_secret(str(key)):
            into[name] = HIDDEN
        elif isinstance(value, Mapping) and value:
            _flatten(f"{name}.", value, into)
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            text = clean_uri(text)
            into[name] = text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
