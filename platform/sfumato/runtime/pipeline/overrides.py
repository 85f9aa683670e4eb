"""`stage.key=value` on the command line of a pipeline."""

from __future__ import annotations

from typing import Any

import yaml

from sfumato.errors import ConfigError
from sfumato.runtime.pipeline import graph
from sfumato.runtime.pipeline.kinds import KINDS


def apply(content: Any, override: str) -> None:
    """Apply to a pipeline's plain data: `at_once=1`, `gate.name=x` for a field of a stage, or
    `diffusion.train.images=1000` for a field of what it works on (its `set`).

    Raises ConfigError in one line.
    """
    path, equals, text = override.partition("=")
    if not equals or not isinstance(content, dict):
        raise ConfigError(f"override {override!r} is not of the form key=value, for example at_once=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not valid YAML") from None
    first, dot, rest = path.strip().partition(".")
    stages = content.get("stages")
    if not dot and first != "stages":
        content[first] = value
        return
    if not isinstance(stages, dict) or first not in stages:
        there = graph.near(first, stages if isinstance(stages, dict) else ())
        raise ConfigError(f"override {override!r}: there is no stage {first!r}{there}")
    stage = stages[first]
    if not isinstance(stage, dict):
        raise ConfigError(f"stages.{first}: expected the fields of a stage, got {stage!r}")
    try:
        kind = KINDS.find(str(stage.get("kind")))
    except ConfigError:  # reading the stages explains it
        stage[rest] = value
        return
    if rest in kind.model_fields:
        stage[rest] = value
    elif "set" in kind.model_fields:
        stage["set"] = {**(stage.get("set") or {}), rest: value}
    else:
        raise ConfigError(
            f"override {override!r}: unknown key; a stage of kind {stage['kind']} has "
            f"{', '.join(sorted(kind.model_fields))}"
        )
