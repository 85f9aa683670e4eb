"""The settings that metrics share, and each metric's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import Field

from sfumato.core.config import Config
from sfumato.evaluation.parallel_map import Spread, in_process

S = TypeVar("S", bound=Config)


class MetricSettings(Config):
    """The user's choices that all metrics share. The class of a recipe also has those of every metric: see
    `metrics.settings`. Figures are comparable only at equal settings."""

    seed: int = Field(2020, ge=0, description="Seed of random subsets; torch-fidelity's default.")


DEFAULTS = MetricSettings()


@dataclass(frozen=True, slots=True)
class MetricOptions:
    """The settings that metrics share.

    `spread` runs the parts of large computations, in this process or on workers; no number depends on it.
    """

    k: int = 3
    settings: MetricSettings = DEFAULTS
    spread: Spread = in_process

    def of(self, kind: type[S]) -> S:
        """The settings of one metric, of its class `Settings`; the defaults if none were chosen."""
        return self.settings if isinstance(self.settings, kind) else kind()
