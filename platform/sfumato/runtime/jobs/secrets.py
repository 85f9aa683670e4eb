"""What is submitted holds no secret: packages, logs and process lists are read by others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sfumato.errors import ConfigError
from sfumato.tracking.redact import clean_uri, is_secret

_REFERENCE = "${oc.env:"


def check_no_secrets(content: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError where a field holds a secret.

    A reference to an environment variable of the cluster, ${oc.env:NAME}, is none.
    """
    for field, value in _leaves(content, ""):
        text = str(value)
        if value is None or text.startswith(_REFERENCE):
            continue
        if is_secret(field) or clean_uri(text) != text:
            raise ConfigError(
                f"{where}: {field} holds a secret, and what is submitted is stored and shown on the cluster: "
                "set an environment variable there, name it with --secret NAME, and leave the value out"
            )


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConfigError where one is not key=value, or its value is a secret."""
    check_no_secrets(dict(_pairs(overrides)), "override")


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} is not of the form key=value")
        yield key, value


def _leaves(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            # Of a list of secrets, the list has the telling name.
            yield from (
                (name if is_secret(name) else field, leaf)
                for field, leaf in _leaves(value, f"{name}.{index}")
            )
    else:
        yield name, content
