"""The user's changes to a family's sampling defaults, typed by the family's own configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.family import FamilyConfig
from sfumato.core.validation import explain
from sfumato.errors import ConfigError


def apply_options(config: FamilyConfig, data: DataSpec, overrides: Mapping[str, Any]) -> Config:
    """The sampling configuration of `config` with `overrides`; values may be text from a command line.

    Raises:
        ConfigError: an option that this family does not have, or a value that it cannot take.
    """
    defaults = config.sampling
    legal = list(type(defaults).model_fields)
    unknown = [_unknown(name, legal, config.family) for name in overrides if name not in legal]
    if unknown:
        raise ConfigError(*unknown)
    try:
        options = type(defaults).model_validate({**defaults.model_dump(), **overrides})
    except ValidationError as error:
        raise ConfigError(*explain(error, type(defaults))) from None
    changed = config.model_copy(update={"sampling": options})
    if problems := changed.problems(data):
        raise ConfigError(*(problem.removeprefix("model.sampling.") for problem in problems))
    return options


def together(named: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options given by their own argument, which are not None, and others. Raises ConfigError for both."""
    given = {name: value for name, value in named.items() if value is not None}
    if twice := sorted(given.keys() & options.keys()):
        raise ConfigError(f"{twice[0]}: given twice, by its own argument and among the options; give one")
    return given | dict(options)


def _unknown(name: str, legal: list[str], family: str) -> str:
    near = difflib.get_close_matches(name, legal, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{name}: {family} has no such sampling option; {hint}There are {', '.join(legal) or 'none'}"
