"""DPM-Solver++, second-order multistep (Lu et al. 2022)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sfumato.families.diffusion.samplers import NoiseLevels, Sampler

LOWEST_LOG_SNR = -5.1
"""Half log-SNR at which DPM-Solver++ starts on the cosine schedule, whose own end lies at about -10: the
value that the solver's authors recommend."""


def starts_early(levels: NoiseLevels) -> bool:
    """Whether the solver leaves out the noisiest levels; those of a zero terminal SNR are there for it."""
    return levels.schedule == "cosine" and not levels.zero_terminal_snr


class DpmSolver(Sampler):
    """A solver of the probability flow's differential equation."""

    kind: Literal["dpmsolver++"] = Field("dpmsolver++", description="Selects DPM-Solver++.")

    def scheduler(self, levels: NoiseLevels, *, clip: bool) -> Any:
        """diffusers' `DPMSolverMultistepScheduler`.

        It knows clipping as dynamic thresholding (Saharia et al. 2022) whose threshold may not exceed 1,
        which is the same thing.
        """
        from diffusers import DPMSolverMultistepScheduler  # takes seconds, so only when sampling

        return DPMSolverMultistepScheduler(
            **levels.for_diffusers(),
            algorithm_type="dpmsolver++",
            solver_order=2,
            thresholding=clip,
            sample_max_value=1.0,
            lambda_min_clipped=LOWEST_LOG_SNR if starts_early(levels) else -float("inf"),
        )


COMPONENT = DpmSolver
