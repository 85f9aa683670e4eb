"""The base of every configuration: strict, frozen, described."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A part of the recipe that a component owns. Unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
