"""Denoising diffusion on T discrete noise levels (Ho et al. 2020), drawn by diffusers' samplers."""

from __future__ import annotations

from sfumato.families.diffusion.objectives.ddpm.objective import DDPM, DDPMConfig, DDPMSampling

__all__ = ["COMPONENT", "DDPM", "DDPMConfig", "DDPMSampling"]

COMPONENT = DDPMConfig
