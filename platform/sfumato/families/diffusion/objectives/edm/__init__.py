"""EDM: preconditioned denoising at continuous noise levels (Karras et al. 2022)."""

from __future__ import annotations

from sfumato.families.diffusion.objectives.edm.objective import EDM, EDMConfig, Preconditioning
from sfumato.families.diffusion.objectives.edm.sampling import EDMSampling

__all__ = ["COMPONENT", "EDM", "EDMConfig", "EDMSampling", "Preconditioning"]

COMPONENT = EDMConfig
