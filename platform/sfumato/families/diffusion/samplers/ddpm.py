"""Ancestral sampling (Ho et al. 2020, algorithm 2)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from sfumato.families.diffusion.samplers import NoiseLevels, Sampler


class Ancestral(Sampler):
    """Draws every step with the model's own variance or, if it has none, the smaller of the paper's two."""

    adds_noise: ClassVar[bool] = True
    kind: Literal["ddpm"] = Field("ddpm", description="Selects ancestral sampling.")

    def scheduler(self, levels: NoiseLevels, *, clip: bool) -> Any:
        """diffusers' `DDPMScheduler`."""
        from diffusers import DDPMScheduler  # takes seconds, so only when sampling

        variance = "learned_range" if levels.learned_variance else "fixed_small"
        return DDPMScheduler(**levels.for_diffusers(), variance_type=variance, clip_sample=clip)


COMPONENT = Ancestral
