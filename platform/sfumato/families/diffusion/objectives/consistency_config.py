"""Settings of consistency training and of its sampler; `consistency.py` has the equations."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sfumato.core.config import Config
from sfumato.families.diffusion.objectives.consistency import HUBER_PER_ROOT_DIMENSION, Consistency
from sfumato.families.diffusion.objectives.curriculum import Curriculum
from sfumato.families.diffusion.objectives.objective import LATENT_STD, PIXEL_STD, SamplingBase


class ConsistencyConfig(Config):
    """Consistency training from scratch."""

    kind: Literal["consistency"] = Field("consistency", description="Selects this objective.")
    sigma_data: float | None = Field(
        None,
        gt=0,
        description="Standard deviation of the data in [-1, 1], or of the scaled latents; null means "
        f"{PIXEL_STD} for a model of pixels and {LATENT_STD} for one of latents.",
    )
    sigma_min: float = Field(0.002, gt=0, description="Noise level at which the model returns its input.")
    sigma_max: float = Field(80.0, gt=0, description="Noise level from which one step leads to an image.")
    rho: float = Field(7.0, ge=1, description="Spacing of the noise levels (Karras et al. 2022, eq. 5).")
    curriculum: Curriculum = Field(Curriculum(), description="Number of noise levels against images.")
    noise: Literal["lognormal", "uniform"] = Field(
        "lognormal", description="How a pair of neighbouring noise levels is chosen."
    )
    p_mean: float = Field(-1.1, description="Mean of ln sigma, for lognormal noise.")
    p_std: float = Field(2.0, gt=0, description="Standard deviation of ln sigma, for lognormal noise.")
    distance: Literal["pseudo_huber", "l2"] = Field(
        "pseudo_huber", description="d: sqrt(||a - b||^2 + c^2) - c, or ||a - b||^2."
    )
    huber: float | None = Field(
        None,
        gt=0,
        description=f"c of the pseudo-Huber distance; null is {HUBER_PER_ROOT_DIMENSION} sqrt(dimensions).",
    )
    weight: Literal["inverse_gap", "one"] = Field(
        "inverse_gap", description="w_i: one over the distance of the two noise levels, or one."
    )
    teacher_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="mu0 of the teacher's average, which slows as the noise levels grow in number (Song et "
        "al. 2023 use 0.9 to 0.95); 0 makes the teacher the student itself (Song & Dhariwal 2024).",
    )

    @model_validator(mode="after")
    def _make_sense(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: {self.sigma_min:g} is not below sigma_max={self.sigma_max:g}")
        if self.noise == "uniform" and (self.p_mean, self.p_std) != (-1.1, 2.0):
            raise ValueError("p_mean and p_std have no effect with noise=uniform; leave them out")
        if self.distance == "l2" and self.huber is not None:
            raise ValueError("huber: has no effect with distance=l2; leave it out")
        return self

    def build(self, *, latents: bool = False) -> Consistency:
        """The objective of a model of pixels, or of latents."""
        return Consistency(self, latents=latents)


class ConsistencySampling(SamplingBase):
    """How images are drawn; `sfumato sample` may change any of it."""

    steps: int = Field(
        1, ge=1, description="Network evaluations: 1 is the plain model; each further one adds noise again."
    )
    sigmas: tuple[float, ...] | None = Field(
        None,
        description="Falling noise levels of the steps after the first; null spaces them as training does.",
    )

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if self.sigmas is not None and len(self.sigmas) != self.steps - 1:
            raise ValueError(
                f"sigmas: got {len(self.sigmas)} for {self.steps} step(s); give one for each step after the "
                f"first ({self.steps - 1}), or leave them out"
            )
        if self.sigmas and list(self.sigmas) != sorted(set(self.sigmas), reverse=True):
            raise ValueError("sigmas: must fall from each to the next")
        return self

    def problems(self, objective: Config) -> list[str]:
        """Noise levels that the model was not trained for."""
        assert isinstance(objective, ConsistencyConfig)
        low, high = objective.sigma_min, objective.sigma_max
        bad = [sigma for sigma in self.sigmas or () if not low < sigma < high]
        if not bad:
            return []
        return [f"model.sampling.sigmas: {bad[0]:g} is not between {low:g} and {high:g} (objective.sigma_*)"]
