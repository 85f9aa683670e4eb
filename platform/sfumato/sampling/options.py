"""What the user changes of a family's sampling defaults, typed by the family's own configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
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


def check_labels(
    labels: Sequence[int] | None, num: int, config: FamilyConfig, data: DataSpec
) -> list[int] | None:
    """The label of every sample: those given, or for a conditional model without any all classes in turn.

    Raises:
        ConfigError: labels for a model that takes none, too few or many of them, or unknown classes.
    """
    if not config.conditional(data):
        if labels is not None:
            raise ConfigError(f"labels: this {config.family} model takes none; leave them out")
        return None
    if labels is None:
        return [index % data.num_classes for index in range(num)]
    if len(labels) != num:
        raise ConfigError(f"labels: got {len(labels)} for {num} samples; give one a sample")
    bad = [label for label in labels if not 0 <= label < data.num_classes]
    if bad:
        raise ConfigError(
            f"labels: {bad[0]} is no class of this model; it has 0 to {data.num_classes - 1} "
            f"({', '.join(data.classes[:12])}{', ...' if data.num_classes > 12 else ''})"
        )
    return [int(label) for label in labels]


def _unknown(name: str, legal: list[str], family: str) -> str:
    near = difflib.get_close_matches(name, legal, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{name}: {family} has no such sampling option; {hint}There are {', '.join(legal) or 'none'}"
