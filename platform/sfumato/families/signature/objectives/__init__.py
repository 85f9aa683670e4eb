"""What is trained. A file here is an objective: its settings and the family that they build."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.family import Family
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.schedules import EmaSchedule
from sfumato.core.stored import StageSpec


@dataclass(frozen=True, slots=True)
class Training:
    """How the network is trained and averaged."""

    optimizer: OptimizerConfig
    ema: EmaSchedule


class ObjectiveConfig(Component, ABC):
    """Settings of an objective."""

    @abstractmethod
    def build(self, training: Training, data: DataSpec) -> Family:
        """The family for images of this kind."""

    def stage(self, data: DataSpec) -> StageSpec | None:
        """The network that other models may use as a first stage, if there is one."""
        return None

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why it cannot train on this data, one line each."""
        return []


OBJECTIVES: Components[Any] = Components(
    "sfumato.families.signature.objectives", ObjectiveConfig, default="hidden"
)
