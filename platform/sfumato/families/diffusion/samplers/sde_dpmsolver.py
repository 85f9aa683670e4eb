"""SDE-DPM-Solver++, multistep of second or third order (Lu et al. 2022, appendix B.2)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from sfumato.families.diffusion.samplers import NoiseLevels, Sampler


class SdeDpmSolver(Sampler):
    """A solver of the reverse stochastic differential equation: it draws noise in every step but the last."""

    adds_noise: ClassVar[bool] = True
    kind: Literal["sde-dpmsolver++"] = Field("sde-dpmsolver++", description="Selects SDE-DPM-Solver++.")
    order: Literal[2, 3] = Field(
        2, description="Order of the deterministic part; the noise is of the first order in either case."
    )

    def scheduler(self, levels: NoiseLevels, *, clip: bool) -> Any:
        """diffusers' `DPMSolverMultistepScheduler` with its stochastic algorithm and our own third order."""
        from sfumato.families.diffusion.trajectory.multistep import multistep  # loads diffusers

        return multistep("sde-dpmsolver++", self.order, levels, clip=clip)


COMPONENT = SdeDpmSolver
