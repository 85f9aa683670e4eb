"""MeanFlow: the average velocity over a step, learnt from scratch (Geng et al. 2025).

With x_t = (1 - t) y + t z and v = z - y, the network u(x_t, r, t) is the mean of the velocity from r to t.
One step leads from noise to image: y = z - u(z, 0, 1). It satisfies (eq. 6)

    u = v - (t - r) du/dt,    du/dt = v d_x u + d_t u

which is trained with the right side as target, without gradient, and errors weighted by 1/(||e||^2 + c)^p
(sec. 4.3). At r = t it is rectified flow. With guidance w and its share k of the guided model (eq. 19, 21),

    v~ = w v + k u(x_t, t, t, c) + (1 - w - k) u(x_t, t, t, null)

takes the place of v, and the network has the guidance w / (1 - k) built in. `direction: model` follows the
network's own velocity u(x_t, t, t) in du/dt instead of v, whose noise the target then does not have (improved
MeanFlow; Geng et al. 2025b, sec. 4.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.diffusion.distillation.tangents import tangent
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.objectives import (
    GuidableObjective,
    Model,
    Objective,
    ObjectiveConfig,
    SamplingBase,
)

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning, Given, Guided

TIME_SCALE = 10.0
"""What the network sees of a time in [0, 1]: its waves must be slow, since the loss differentiates them."""


class MeanFlowSampling(SamplingBase):
    """How the mean velocity is followed; `sfumato sample` may change any of it."""

    steps: int = Field(1, ge=1, description="Equal steps from noise to image, one evaluation each.")


class MeanFlowConfig(ObjectiveConfig, GuidableObjective):
    """One step from noise to image, without a teacher."""

    Sampling: ClassVar[type[SamplingBase]] = MeanFlowSampling
    kind: Literal["mean_flow"] = Field("mean_flow", description="Selects this objective.")
    apart: float = Field(
        0.25, ge=0, le=1, description="Share of rows whose r and t differ; the others train the velocity."
    )
    logit_mean: float = Field(-0.4, description="Mean of the normal variable whose logistic is a time.")
    logit_std: float = Field(1.0, gt=0, description="Its standard deviation.")
    power: float = Field(1.0, ge=0, description="p of the adaptive weight; 0 is the plain squared error.")
    floor: float = Field(1e-3, gt=0, description="c of the adaptive weight.")
    guidance: float = Field(1.0, ge=0, description="w of the guidance that is built in; 1 is none.")
    mixed: float = Field(
        0.0, ge=0, lt=1, description="k, the guided model's own share; the guidance becomes w / (1 - k)."
    )
    direction: Literal["data", "model"] = Field(
        "data", description="The velocity along which du/dt is taken: of the data, or the network's own."
    )

    @model_validator(mode="after")
    def _guidance_makes_sense(self) -> Self:
        if self.mixed and self.guidance == 1:
            raise ValueError("mixed: has no effect with guidance=1; set guidance, or leave it out")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Half of the rows apart, guided; a weight that leaves losses different."""
        return cls(apart=0.5, guidance=1.5, label_dropout=0.5, power=0.5)

    def build(self, *, latents: bool = False) -> MeanFlow:
        """The objective; it is the same for pixels and latents."""
        return MeanFlow(self)

    def problems(self, own: Model, data: DataSpec) -> list[str]:
        """A network without spans, or guidance without classes that are dropped."""
        return [*span_problems(own), *guidance_problems(self.guidance, own, data)]


def span_problems(own: Model) -> list[str]:
    """A network that does not see the length of a step."""
    if own.network.takes_spans:
        return []
    reason = (
        f"model.network: {own.network.kind} does not see the length of a step, which objective "
        f"{own.objective.kind} needs; use unet, ddpmpp or dit"
    )
    return [reason]


def guidance_problems(guidance: float, own: Model, data: DataSpec) -> list[str]:
    """Guidance in training of a model without classes that are dropped."""
    if guidance == 1:
        return []
    if own.text is not None or not own.conditions(data):
        return [f"model.objective.guidance: {guidance:g}, but the model has no classes; set it to 1"]
    if not own.label_dropout(data):
        return [f"model.objective.guidance: {guidance:g} needs objective.label_dropout above 0, such as 0.1"]
    return []


class MeanFlow(Objective):
    """Regression on the mean velocity, whose derivative is taken in forward mode (`tangents`)."""

    phase = "flow"
    spans = True
    float32 = True  # (t - r) du/dt is a difference that bfloat16 would round away

    def __init__(self, config: MeanFlowConfig) -> None:
        self._config = config

    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """Adaptively weighted squared error of the mean velocity."""
        config, y_BCHW = self._config, batch["image"]
        t_B, r_B = self.times(rng)
        z_BCHW = rng.normal(*y_BCHW.shape[1:])
        given = labels.draw(batch, rng)
        x_BCHW = torch.lerp(y_BCHW, z_BCHW, t_B.view(-1, 1, 1, 1))
        network = nets["network"]

        def mean_velocity(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
            return predict(network, x, t * TIME_SCALE, given, span * TIME_SCALE)

        with torch.no_grad():
            plain_BCHW = self._velocity(network, x_BCHW, z_BCHW - y_BCHW, t_B, given, labels)
            along_BCHW = plain_BCHW
            if config.direction == "model":
                along_BCHW = mean_velocity(x_BCHW, t_B, torch.zeros_like(t_B))
        ones_B = torch.ones_like(t_B)
        _, change_BCHW = tangent(mean_velocity, (x_BCHW, t_B, t_B - r_B), (along_BCHW, ones_B, ones_B))
        wanted_BCHW = plain_BCHW - (t_B - r_B).view(-1, 1, 1, 1) * change_BCHW
        error_B = (mean_velocity(x_BCHW, t_B, t_B - r_B) - wanted_BCHW).square().flatten(1).sum(dim=1)
        weight_B = (error_B.detach() + config.floor).pow(-config.power)
        mean_B = error_B.detach() / y_BCHW[0].numel()
        return LossOut(weight_B * error_B, {"squared_error": mean_B})

    def times(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """t and r <= t, each [B]; r = t but for a share of the rows."""
        config = self._config
        a_B, b_B = (torch.sigmoid(config.logit_mean + config.logit_std * rng.normal()) for _ in range(2))
        t_B = torch.maximum(a_B, b_B)
        return t_B, torch.where(rng.uniform() < config.apart, torch.minimum(a_B, b_B), t_B)

    def sample(
        self,
        network: Guided,
        noise_NCHW: Tensor,
        options: MeanFlowSampling,
        rng: SampleRng,
        *,
        clip: bool,
        first: int = 0,
    ) -> Tensor:
        """x_r = x_t - (t - r) u(x_t, r, t), from t = 1 to 0."""
        x_NCHW, span = noise_NCHW, 1 / options.steps
        for i in range(options.steps):
            t = 1 - i * span
            times_N = torch.full((len(x_NCHW),), t * TIME_SCALE, device=x_NCHW.device)
            spans_N = torch.full_like(times_N, span * TIME_SCALE)
            u_NCHW = predict(network.network, x_NCHW, times_N, network.given, spans_N)
            x_NCHW = x_NCHW - span * u_NCHW
        return x_NCHW

    def _velocity(
        self,
        network: torch.nn.Module,
        x_BCHW: Tensor,
        v_BCHW: Tensor,
        t_B: Tensor,
        given: Given | None,
        labels: Conditioning,
    ) -> Tensor:
        """v, or v~ under guidance, without a gradient, [B, C, H, W]; rows without a class keep v."""
        config = self._config
        null = labels.null_class
        if config.guidance == 1 or null is None:
            return v_BCHW
        assert isinstance(given, Tensor), "guided models have classes"
        zero_B = torch.zeros_like(t_B)

        def velocity(label_B: Tensor) -> Tensor:
            return predict(network, x_BCHW, t_B * TIME_SCALE, label_B, zero_B)

        rest = 1 - config.guidance - config.mixed
        guided_BCHW = config.guidance * v_BCHW + rest * velocity(torch.full_like(given, null))
        if config.mixed:
            guided_BCHW = guided_BCHW + config.mixed * velocity(given)
        return torch.where((given == null).view(-1, 1, 1, 1), v_BCHW, guided_BCHW)


COMPONENT = MeanFlowConfig
