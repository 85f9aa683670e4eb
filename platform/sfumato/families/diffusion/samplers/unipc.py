"""UniPC: a predictor and a corrector that shares its network evaluations (Zhao et al. 2023, algorithm 1)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sfumato.families.diffusion.samplers import NoiseLevels, Sampler


class UniPC(Sampler):
    """UniPC on predicted images with B_2(h) = e^h - 1; the corrector raises the order by one."""

    kind: Literal["unipc"] = Field("unipc", description="Selects UniPC.")
    order: Literal[1, 2, 3] = Field(
        2, description="Order of the predictor: 2 suits guided sampling, 3 sampling without guidance."
    )

    def scheduler(self, levels: NoiseLevels, *, clip: bool) -> Any:
        """diffusers' `UniPCMultistepScheduler`, which clips as DPM-Solver++ does (`multistep`)."""
        from diffusers import UniPCMultistepScheduler  # takes seconds, so only when sampling

        return UniPCMultistepScheduler(
            **levels.for_diffusers(),
            solver_order=self.order,
            solver_type="bh2",
            predict_x0=True,
            thresholding=clip,
            sample_max_value=1.0,
        )


COMPONENT = UniPC
