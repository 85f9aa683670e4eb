"""Consistency training: one step from noise to image (Song et al. 2023; Song & Dhariwal 2024).

The consistency function is preconditioned so that f(x, sigma_min) = x (Song et al. 2023, eq. 5, app. C):

    f(x, sigma) = c_skip x + c_out F(c_in x, c_noise)
    c_skip = sigma_data^2 / ((sigma - sigma_min)^2 + sigma_data^2)
    c_out  = sigma_data (sigma - sigma_min) / sqrt(sigma^2 + sigma_data^2)
    c_in   = 1 / sqrt(sigma^2 + sigma_data^2),    c_noise = 250 ln(sigma)

Neighbouring noise levels of one noisy image are to give the same answer (algorithm 3), under the same dropout
mask (`karras_diffusion.py` of the authors):

    L = E  w_i d( f(x + sigma_{i+1} z, sigma_{i+1}),  f_teacher(x + sigma_i z, sigma_i) )

The defaults are those of improved consistency training (Song & Dhariwal 2024, table 1): the teacher is the
student itself without gradient, d is the pseudo-Huber distance (eq. 8), w_i = 1/(sigma_{i+1} - sigma_i),
i follows a discretised log-normal (eq. 10), and the discretisation doubles (`curriculum.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.batch import Batch
from sfumato.core.config import Config
from sfumato.core.earlier_defaults import Before
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng, repeatable
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.objectives import (
    Objective,
    ObjectiveConfig,
    SamplingBase,
)
from sfumato.families.diffusion.objectives.consistency.curriculum import Curriculum
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws
from sfumato.families.diffusion.trajectory.noise_levels import (
    IN_PROPORTION,
    LATENT_STD,
    PIXEL_STD,
    SIGMA_MAX,
    SIGMA_MIN,
    data_std,
    karras_sigmas,
    noise_scale,
    sigma_range,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sfumato.families.diffusion.guidance.labels import Conditioning, Guided

HUBER_PER_ROOT_DIMENSION = 0.00054
P_MEAN = -1.1
MIDDLE = 0.821
"""The noise level of the second of two steps."""
TIME_SCALE = 250.0


class ConsistencySampling(SamplingBase):
    """How images are drawn; `sfumato sample` may change any of it."""

    steps: int = Field(
        1, ge=1, description="Network evaluations: 1 is the plain model; each further one adds noise again."
    )
    sigmas: Annotated[tuple[float, ...] | Literal["auto"] | None, Before(2, None)] = Field(
        "auto",
        description="Falling noise levels of the steps after the first. auto: for two steps "
        f"{MIDDLE} {IN_PROPORTION} (Song & Dhariwal 2024); for more steps, or if the model was not trained "
        "at that level, null. null: spaced as in training.",
    )

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if not isinstance(self.sigmas, tuple):
            return self
        if len(self.sigmas) != self.steps - 1:
            raise ValueError(
                f"sigmas: got {len(self.sigmas)} for {self.steps} step(s); give one for each step after the "
                f"first ({self.steps - 1}), or leave them out"
            )
        if list(self.sigmas) != sorted(set(self.sigmas), reverse=True):
            raise ValueError("sigmas: must fall from each to the next")
        return self

    def problems(self, objective: Config, *, latents: bool) -> list[str]:
        """Noise levels that the model was not trained for."""
        assert isinstance(objective, ConsistencyConfig)
        scale = noise_scale(data_std(objective.sigma_data, latents=latents), latents=latents)
        low, high = sigma_range(objective.sigma_min, objective.sigma_max, scale)
        given = self.sigmas if isinstance(self.sigmas, tuple) else ()
        bad = [sigma for sigma in given if not low < sigma < high]
        if not bad:
            return []
        return [f"model.sampling.sigmas: {bad[0]:g} is not between {low:g} and {high:g} (objective.sigma_*)"]


class ConsistencyConfig(ObjectiveConfig, NoiseDraws):
    """Consistency training from scratch."""

    Sampling: ClassVar[type[SamplingBase]] = ConsistencySampling
    kind: Literal["consistency"] = Field("consistency", description="Selects this objective.")
    sigma_data: float | None = Field(
        None,
        gt=0,
        description="Standard deviation of the data in [-1, 1], or of the scaled latents; null means "
        f"{PIXEL_STD} for a model of pixels and {LATENT_STD} for one of latents.",
    )
    sigma_min: Annotated[float | None, Before(2, SIGMA_MIN)] = Field(
        None,
        gt=0,
        description=f"Noise level at which the model returns its input; null means {SIGMA_MIN} "
        f"{IN_PROPORTION}.",
    )
    sigma_max: Annotated[float | None, Before(2, SIGMA_MAX)] = Field(
        None,
        gt=0,
        description=f"Noise level from which one step leads to an image; null means {SIGMA_MAX:g} "
        f"{IN_PROPORTION}.",
    )
    rho: float = Field(7.0, ge=1, description="Spacing of the noise levels (Karras et al. 2022, eq. 5).")
    curriculum: Curriculum = Field(Curriculum(), description="Number of noise levels against images.")
    noise: Literal["lognormal", "uniform"] = Field(
        "lognormal", description="How a pair of neighbouring noise levels is chosen."
    )
    p_mean: Annotated[float | None, Before(2, P_MEAN)] = Field(
        None,
        description=f"Mean of ln sigma, for lognormal noise; null means {P_MEAN}, and on latents "
        f"{P_MEAN} + ln(sigma_data / {PIXEL_STD}).",
    )
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
        low, high = sigma_range(self.sigma_min, self.sigma_max)
        if low >= high:
            raise ValueError(f"sigma_min: {low:g} is not below sigma_max={high:g}")
        if self.noise == "uniform" and (self.p_mean not in (None, P_MEAN) or self.p_std != 2.0):
            raise ValueError("p_mean and p_std have no effect with noise=uniform; leave them out")
        if self.distance == "l2" and self.huber is not None:
            raise ValueError("huber: has no effect with distance=l2; leave it out")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """4 to 8 noise levels, and a teacher that lags behind."""
        return cls(curriculum=Curriculum(growth="root", first=4, last=8), teacher_decay=0.9)

    @classmethod
    def tiny_sampling(cls) -> ConsistencySampling:
        """2 steps."""
        return ConsistencySampling(steps=2)

    def build(self, *, latents: bool = False) -> Consistency:
        """The objective of a model of pixels, or of latents."""
        return Consistency(self, latents=latents)


class Consistency(Objective):
    """The consistency loss, its teacher, and sampling in one step or several."""

    phase = "consistency"
    float32 = (
        True  # of the difference of two neighbouring levels, bf16 rounds 20 % at 81 levels, more at 1,281
    )

    def __init__(self, config: ConsistencyConfig, *, latents: bool = False) -> None:
        self._config = config
        self._sigma_data = data_std(config.sigma_data, latents=latents)
        scale = noise_scale(self._sigma_data, latents=latents)
        self._least, self._most = sigma_range(config.sigma_min, config.sigma_max, scale)
        self._middle = MIDDLE * scale
        self._p_mean = P_MEAN + math.log(scale) if config.p_mean is None else config.p_mean
        self._levels: tuple[int, Tensor, Tensor] | None = None

    def nets(self) -> Mapping[str, NetSpec]:
        """The teacher; with a decay of 0 it equals the student before every step."""
        config = self._config
        return {
            "teacher": EmaOf(
                source="network",
                decay=lambda progress: config.curriculum.teacher_decay(config.teacher_decay, progress),
                train_mode=True,
            )
        }

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Weighted distance of student and teacher at two neighbouring noise levels, with one dropout."""
        x_BCHW = batch["image"]
        sigmas_N, cumulative_N = self.levels(self._config.curriculum.levels(progress))
        index_B = torch.searchsorted(cumulative_N, self._config.uniform(rng).cpu().double(), right=True)
        low_B, high_B = (sigmas_N[index_B + up].float().to(x_BCHW.device) for up in (0, 1))
        noise_BCHW = rng.normal(*x_BCHW.shape[1:])
        given = labels.draw(batch, rng)

        def answer(net: str, sigma_B: Tensor) -> Tensor:
            def output(x: Tensor, t: Tensor) -> Tensor:
                return predict(nets[net], x, t, given)

            return self.consistency(output, x_BCHW + sigma_B.view(-1, 1, 1, 1) * noise_BCHW, sigma_B)

        with torch.no_grad(), repeatable(x_BCHW.device):
            wanted_BCHW = answer("teacher", low_B)
        distance_B = self.distance(answer("network", high_B), wanted_BCHW)
        loss_B = distance_B / (high_B - low_B) if self._config.weight == "inverse_gap" else distance_B
        # On the loss's device: the meters stack what belongs to one update.
        levels = torch.full((), float(len(sigmas_N)), device=loss_B.device)
        return LossOut(loss_B, {"distance": distance_B.detach(), "noise_levels": levels})

    def sample(
        self,
        network: Guided,
        noise_NCHW: Tensor,
        options: ConsistencySampling,
        rng: SampleRng,
        *,
        clip: bool,
        first: int = 0,
    ) -> Tensor:
        """Algorithm 1 of Song et al. 2023: answer, and answer again after adding less noise each time."""

        def answer(x_NCHW: Tensor, sigma: float) -> Tensor:
            sigma_N = torch.full((len(x_NCHW),), sigma, device=x_NCHW.device)
            found_NCHW = self.consistency(network, x_NCHW, sigma_N)
            return found_NCHW.clamp(-1, 1) if clip else found_NCHW

        x_NCHW = answer(noise_NCHW * self._most, self._most)
        for sigma in self.later_sigmas(options):
            fresh_NCHW = rng.normal(*x_NCHW.shape[1:]).to(x_NCHW.device)
            x_NCHW = answer(x_NCHW + math.sqrt(sigma**2 - self._least**2) * fresh_NCHW, sigma)
        return x_NCHW

    def consistency(
        self, output: Callable[[Tensor, Tensor], Tensor], x_BCHW: Tensor, sigma_B: Tensor
    ) -> Tensor:
        """f(x, sigma), [B, C, H, W], where `output` is the raw network F."""
        data, least = self._sigma_data, self._least
        sigma = sigma_B.view(-1, 1, 1, 1)
        skip = data**2 / ((sigma - least).square() + data**2)
        root = (sigma.square() + data**2).sqrt()
        out = data * (sigma - least) / root
        return skip * x_BCHW + out * output(x_BCHW / root, TIME_SCALE * sigma_B.log())

    def distance(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """d(a, b), [B]."""
        squared_B = (a_BCHW - b_BCHW).square().flatten(1).sum(dim=1)
        if self._config.distance == "l2":
            return squared_B
        c = self._config.huber
        if c is None:
            c = HUBER_PER_ROOT_DIMENSION * math.sqrt(a_BCHW[0].numel())
        return (squared_B + c**2).sqrt() - c

    def levels(self, number: int) -> tuple[Tensor, Tensor]:
        """`number` rising noise levels [N], and the probability [N - 1] of an index up to i; float64.

        A pair (i, i + 1) has the probability that ln sigma ~ N(p_mean, p_std^2) has of falling between its
        levels, normalised over all pairs (Song & Dhariwal 2024, eq. 10), or every pair has the same.
        """
        if self._levels is None or self._levels[0] != number:
            self._levels = (number, *self._discretise(number))
        return self._levels[1:]

    def later_sigmas(self, options: ConsistencySampling) -> list[float]:
        """Noise levels of all steps but the first."""
        if isinstance(options.sigmas, tuple):
            return list(options.sigmas)
        if options.sigmas == "auto" and options.steps == 2 and self._least < self._middle < self._most:
            return [self._middle]
        return self._karras(options.steps + 1)[1:-1]

    def _discretise(self, number: int) -> tuple[Tensor, Tensor]:
        config = self._config
        sigmas_N = torch.tensor(self._karras(number)[::-1], dtype=torch.float64)
        if config.noise == "uniform":
            weight = torch.ones(number - 1, dtype=torch.float64)
        else:
            weight = torch.erf((sigmas_N.log() - self._p_mean) / (math.sqrt(2) * config.p_std)).diff()
        cumulative = weight.cumsum(0) / weight.sum()
        cumulative[-1] = 1.0  # a uniform number is below one: rounding must not open an index beyond the last
        return sigmas_N, cumulative

    def _karras(self, number: int) -> list[float]:
        return karras_sigmas(number, sigma_min=self._least, sigma_max=self._most, rho=self._config.rho)
