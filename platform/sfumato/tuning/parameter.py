"""A searched field of a recipe: its possible values, and how they are drawn and changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from sfumato.core.config import Config

Number = int | float
_KINDS = ("choice", "grid", "uniform", "loguniform")
_TOLERANCE = 1e-9


class Parameter(Config):
    """The possible values of a field: exactly one of `choice`, `grid`, `uniform` and `loguniform`."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1, description="One of these, at random.")
    grid: tuple[Any, ...] | None = Field(
        None, min_length=1, description="Each of these, combined with those of every other grid."
    )
    uniform: tuple[Number, Number] | None = Field(None, description="Lowest and highest value.")
    loguniform: tuple[Number, Number] | None = Field(
        None, description="Lowest and highest value, both above zero; the logarithm is uniform."
    )
    step: Number | None = Field(
        None,
        gt=0,
        description="Only the lowest value and whole steps above it. Where bounds and step are whole "
        "numbers, so are the values.",
    )
    when: dict[str, Any] = Field(
        {},
        description="Searched only where these fields, of the space or of the recipe, have this value (or "
        "one of a list of values).",
    )

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KINDS)}, got {', '.join(given) or 'none'}")
        if self.bounds is None:
            if self.step is not None:
                raise ValueError(f"step: has no meaning with {given[0]}; leave it out")
            return self
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{given[0]}: the lowest value must be below the highest, got [{low}, {high}]")
        if self.loguniform is not None and low <= 0:
            raise ValueError(f"loguniform: a logarithm needs values above zero, got [{low}, {high}]")
        if self.step is not None and self.step > high - low:
            raise ValueError(f"step: {self.step} is more than the whole range from {low} to {high}")
        return self

    @property
    def bounds(self) -> tuple[Number, Number] | None:
        """Lowest and highest value of a range; None for a list of values."""
        return self.uniform or self.loguniform

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """The values of a list; None for a range."""
        return self.choice or self.grid

    def points(self) -> tuple[Any, ...] | None:
        """All values, if they can be counted: those of a list, or of a range with a step."""
        if self.bounds is None:
            return self.listed
        if self.step is None:
            return None
        return tuple(self._point(index) for index in range(self._steps() + 1))

    def draw(self, rng: np.random.Generator) -> Any:
        """A random value; all values of a list, or of a uniform range with steps, are equally likely."""
        if self.bounds is None or (self.uniform is not None and self.step is not None):
            points = self.points()
            assert points is not None
            return points[int(rng.integers(len(points)))]
        low, high = self.bounds
        if self.uniform is not None:
            return self.nearest(low + (high - low) * rng.random())
        return self.nearest(math.exp(math.log(low) + (math.log(high) - math.log(low)) * rng.random()))

    def nearest(self, value: float) -> Number:
        """The legal value of a range that is nearest to `value`."""
        assert self.bounds is not None, "a list has no order"
        low, high = self.bounds
        value = min(max(value, low), high)
        if self.step is None:
            return float(value)
        return self._point(min(round((value - low) / self.step), self._steps()))

    def neighbour(self, value: Any, rng: np.random.Generator) -> Any:
        """A value near `value`: times 0.8 or 1.2 (Jaderberg et al. 2017, sec. 4), or a neighbour in the list.

        A value that this parameter does not have, such as the recipe's own, is replaced by a drawn one.
        """
        up = bool(rng.integers(2))
        if self.bounds is not None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return self.draw(rng)
            moved = self.nearest(value * (1.2 if up else 0.8))
            if moved == value and self.step is not None:  # the step is wider than a fifth of the value
                moved = self.nearest(value + (self.step if up else -self.step))
            return moved
        listed = [_plain(item) for item in self.listed or ()]
        if _plain(value) not in listed:
            return self.draw(rng)
        index = listed.index(_plain(value)) + (1 if up else -1)
        return listed[min(max(index, 0), len(listed) - 1)]

    def contains(self, value: Any) -> bool:
        """Whether `value` is one that this parameter may take."""
        if self.bounds is None:
            return _plain(value) in [_plain(item) for item in self.listed or ()]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.bounds
        close = abs(self.nearest(value) - value) <= _TOLERANCE * max(abs(low), abs(high))
        return low <= value <= high and (self.step is None or close)

    def extremes(self) -> tuple[Any, ...]:
        """Values that would reveal a problem with this parameter: a range's ends, or a whole list."""
        return self.bounds if self.bounds is not None else self.listed or ()

    def allowed(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether `values` meets the condition on the field `name`."""
        wanted = self.when[name]
        options = wanted if isinstance(wanted, list | tuple) else [wanted]
        return name in values and _plain(values[name]) in [_plain(option) for option in options]

    def _steps(self) -> int:
        assert self.bounds is not None
        assert self.step is not None
        return math.floor((self.bounds[1] - self.bounds[0]) / self.step + _TOLERANCE)

    def _point(self, index: int) -> Number:
        assert self.bounds is not None
        assert self.step is not None
        low, high = self.bounds
        value = low + index * self.step
        if index == 0 or isinstance(value, int):
            return value
        # 0.1 + 2 * 0.1 is 0.3 to whoever reads a table or writes the recipe of the best trial.
        return min(float(f"{value:.12g}"), high)


def _plain(value: Any) -> Any:
    """A value as YAML reads it, so that a tuple equals its list."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
