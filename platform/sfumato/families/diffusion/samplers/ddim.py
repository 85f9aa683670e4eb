"""DDIM (Song et al. 2021): deterministic, or with noise set by `sampling.eta`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from sfumato.families.diffusion.samplers import NoiseLevels, Sampler


class Ddim(Sampler):
    """Few steps along the trajectory."""

    takes_eta: ClassVar[bool] = True
    kind: Literal["ddim"] = Field("ddim", description="Selects DDIM.")

    def scheduler(self, levels: NoiseLevels, *, clip: bool) -> Any:
        """diffusers' `DDIMScheduler`."""
        from diffusers import DDIMScheduler  # takes seconds, so only when sampling

        return DDIMScheduler(**levels.for_diffusers(), clip_sample=clip)


COMPONENT = Ddim
