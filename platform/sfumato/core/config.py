"""The base of every configuration: strict, frozen, described."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A part of the recipe that a component owns. Unknown keys are errors, values cannot change, and no
    number is infinite or NaN: bounds such as `gt=0` would let infinity pass."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
