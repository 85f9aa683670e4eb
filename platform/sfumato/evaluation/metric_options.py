"""The settings that metrics share, and each metric's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import Field

from sfumato.core.config import Config
from sfumato.core.earlier_defaults import Before
from sfumato.evaluation.parallel_map import Spread, in_process

S = TypeVar("S", bound=Config)


class MetricSettings(Config):
    """The user's choices that all metrics share. The class of a recipe also has those of every metric: see
    `metrics.settings`. Figures are comparable only at equal settings."""

    seed: int = Field(2020, ge=0, description="Seed of random subsets; torch-fidelity's default.")
    density_k: Annotated[int | None, Before(2, None)] = Field(
        5,
        ge=1,
        description="density, coverage: nearest neighbour that sets a ball's radius, 5 as in Naeem et al. "
        "2020; null: that of precision and recall (k).",
    )


DEFAULTS = MetricSettings()


@dataclass(frozen=True, slots=True)
class MetricOptions:
    """The settings that metrics share.

    `k` is the neighbour that sets a ball's radius, except for density and coverage (`density_k`).
    `spread` runs the parts of large computations, in this process or on workers; no number depends on it.
    """

    k: int = 3
    settings: MetricSettings = DEFAULTS
    spread: Spread = in_process

    @property
    def density_k(self) -> int:
        """The neighbour that sets a ball's radius for density and coverage."""
        return self.settings.density_k or self.k

    def of(self, kind: type[S]) -> S:
        """The settings of one metric, of its class `Settings`; the defaults if none were chosen."""
        return self.settings if isinstance(self.settings, kind) else kind()
