"""The samplers of models with discrete noise levels: each is a scheduler of diffusers' interface.

They start at the last timestep ("trailing" spacing, Lin et al. 2023, table 2), which is the noise level that
standard normal noise stands for, and work on the schedule that training used. A file here is a sampler; its
settings, if any, are given with its name: `sampler: {kind: name, ...}`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

from sfumato.core.components import Component, Components

MAX_BETA = 0.999
Schedule = Literal["linear", "scaled_linear", "cosine"]


class NoiseLevels(NamedTuple):
    """What a sampler needs to know of the model: its number of noise levels, schedule, prediction, whether
    the last level is noise alone, whether it predicts the variance of its steps, and the first and last beta
    where they are not those of `linear_range`."""

    timesteps: int
    schedule: Schedule
    prediction: Literal["epsilon", "v"]
    zero_terminal_snr: bool = False
    learned_variance: bool = False
    betas: tuple[float, float] | None = None

    def for_diffusers(self) -> dict[str, Any]:
        """The same as arguments of a diffusers scheduler."""
        first, last = self.betas or linear_range(self.timesteps, self.schedule)
        return {
            "num_train_timesteps": self.timesteps,
            "beta_schedule": "squaredcos_cap_v2" if self.schedule == "cosine" else self.schedule,
            "beta_start": first,
            "beta_end": last,
            "prediction_type": "epsilon" if self.prediction == "epsilon" else "v_prediction",
            "timestep_spacing": "trailing",
            **({"rescale_betas_zero_snr": True} if self.zero_terminal_snr else {}),
        }


class Sampler(Component, ABC):
    """Builds the scheduler of a trajectory."""

    brief: ClassVar[bool] = True
    takes_eta: ClassVar[bool] = False
    """Whether `sampling.eta` has an effect."""
    adds_noise: ClassVar[bool] = False
    """Whether its steps draw noise whatever the options are."""

    @abstractmethod
    def scheduler(self, levels: NoiseLevels, *, clip: bool) -> Any:
        """A fresh one, with the state of one trajectory; `clip` bounds predicted images to [-1, 1]."""


SAMPLERS: Components[Sampler] = Components(
    "sfumato.families.diffusion.samplers",
    Sampler,
    default="ddim",
    spelling={"dpmsolver": "dpmsolver++", "sde_dpmsolver": "sde-dpmsolver++"},
)


def linear_range(timesteps: int, schedule: Schedule = "linear") -> tuple[float, float]:
    """First and last beta: 1e-4 and 0.02 at T = 1000 (Ho et al. 2020, sec. 4); 8.5e-4 and 0.012 of
    scaled_linear (Stable Diffusion's).

    For another T they scale with 1000 / T, so that x_T stays noise (Nichol & Dhariwal 2021, code).
    """
    first, last = (0.85, 12.0) if schedule == "scaled_linear" else (0.1, 20.0)
    return first / timesteps, min(last / timesteps, MAX_BETA)
