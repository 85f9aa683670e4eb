"""Consistency training: one step from noise to image (Song et al. 2023; Song & Dhariwal 2024)."""

from __future__ import annotations

from sfumato.families.diffusion.objectives.consistency.curriculum import Curriculum
from sfumato.families.diffusion.objectives.consistency.objective import (
    Consistency,
    ConsistencyConfig,
    ConsistencySampling,
)

__all__ = ["COMPONENT", "Consistency", "ConsistencyConfig", "ConsistencySampling", "Curriculum"]

COMPONENT = ConsistencyConfig
