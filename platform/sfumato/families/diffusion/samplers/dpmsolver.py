"""DPM-Solver++, multistep of second or third order (Lu et al. 2022, algorithm 2 and appendix B)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sfumato.families.diffusion.samplers import NoiseLevels, Sampler


class DpmSolver(Sampler):
    """A solver of the probability flow's differential equation."""

    kind: Literal["dpmsolver++"] = Field("dpmsolver++", description="Selects DPM-Solver++.")
    order: Literal[2, 3] = Field(
        2, description="2 suits guided sampling; 3 gains where steps are few and unguided."
    )

    def scheduler(self, levels: NoiseLevels, *, clip: bool) -> Any:
        """diffusers' `DPMSolverMultistepScheduler`, with our own third order."""
        from sfumato.families.diffusion.trajectory.multistep import multistep  # loads diffusers

        return multistep("dpmsolver++", self.order, levels, clip=clip)


COMPONENT = DpmSolver
