"""Conditions on metrics, as a gate has them: `fd_classifier < 1.0`, or `extraction.high < 0.01` on an end of
the figure's confidence interval."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

ENDS = ("low", "high")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TEXT = re.compile(r"\s*([A-Za-z_][\w.\-/]*)\s*(<=|>=|<|>)\s*(\S+)\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Condition:
    """A metric and its bound. `end` is `low` or `high` for that end of the metric's interval."""

    metric: str
    sign: str
    bound: float
    end: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError for a text that is not a condition."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError("is not of the form `metric < number` (or <=, >, >=)")
        try:
            bound = float(found[3])
        except ValueError:
            raise ValueError(f"{found[3]!r} is not a number") from None
        metric, dot, end = found[1].rpartition(".")
        if dot and end in ENDS:
            return cls(metric, found[2], bound, end)
        return cls(found[1], found[2], bound)

    def failure(
        self, metrics: Mapping[str, float], intervals: Mapping[str, Mapping[str, object]]
    ) -> str | None:
        """What is wrong with these figures; None where the condition holds. NaN never satisfies it."""
        value = float(str(intervals[self.metric][self.end])) if self.end else metrics[self.metric]
        if _OPERATORS[self.sign](value, self.bound):
            return None
        name = f"{self.metric}.{self.end}" if self.end else self.metric
        return f"{name} is {value:.4g}, required {self.sign} {self.bound:g}"
