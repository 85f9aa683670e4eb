"""What the network predicts: the noise or v, and perhaps the variance of a reverse step."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from sfumato.families.diffusion.objectives.ddpm.bound import Prediction
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule


class Target:
    """Between the network's output and what it says of the image.

    An output with twice the channels of the image holds, second, the raw variance of the step (Nichol &
    Dhariwal 2021, sec. 3.1).
    """

    def __init__(self, prediction: Literal["epsilon", "v"], schedule: NoiseSchedule) -> None:
        self._prediction = prediction
        self.schedule = schedule

    def of(self, x0_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the first channels of the output are to be, [B, C, H, W]."""
        return eps_BCHW if self._prediction == "epsilon" else self.schedule.velocity(x0_BCHW, eps_BCHW, t_B)

    def per_image_error(self) -> Tensor:
        """The squared error of the target, where that of the image is one, [T] float64."""
        return self.schedule.snr if self._prediction == "epsilon" else self.schedule.snr + 1

    def image(self, output_BCHW: Tensor, xt_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The image behind x_t, [B, C, H, W]."""
        first_BCHW = output_BCHW[:, : xt_BCHW.shape[1]]
        if self._prediction == "epsilon":
            return self.schedule.x0_from_epsilon(xt_BCHW, first_BCHW, t_B)
        return self.schedule.x0_from_velocity(xt_BCHW, first_BCHW, t_B)

    def read(self, output_BCHW: Tensor, xt_BCHW: Tensor, t_B: Tensor) -> Prediction:
        """The image, and the variance of the step to x_{t-1}."""
        raw_BCHW = output_BCHW[:, xt_BCHW.shape[1] :]
        variance = (
            self.schedule.learned_log_variance(raw_BCHW, t_B)
            if raw_BCHW.shape[1]
            else self.schedule.fixed_log_variance(t_B)
        )
        return Prediction(self.image(output_BCHW, xt_BCHW, t_B), variance)
