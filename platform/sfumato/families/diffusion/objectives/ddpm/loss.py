"""The training loss: L_simple of Ho et al. 2020, eq. 14, on the noise or on v, weighted by noise level.

    L = E_{x_0, t, eps} w_t || f(x_t, t, c) - y ||^2        y = eps (Ho 2020) or v_t (Salimans & Ho 2022)

with t uniform over the T timesteps and c the class, sometimes dropped. The square is averaged over pixels
rather than summed, as in the authors' code. A network that learns the variances of its steps adds the
variational bound L_vlb, through the variances alone (Nichol & Dhariwal 2021, eq. 16):

    L_hybrid = L + lambda L_vlb,    L_vlb = T E_t L_t in bits per dimension, as in the authors' code
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch
from sfumato.core.family import LossOut
from sfumato.core.rng import Rng
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.objectives.ddpm.bound import decoder_nats, middle_nats
from sfumato.families.diffusion.objectives.ddpm.target import Target
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws
from sfumato.families.diffusion.trajectory.quartiles import quartiles
from sfumato.families.diffusion.weightings import Weighting

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning


class DenoisingLoss:
    """Weighted squared error of the prediction at one random timestep per row.

    `bound_weight` is lambda, None if no variance is learned. `eight_bit` says that values are those of 8-bit
    images, whose bins at -1 and 1 are open.
    """

    def __init__(
        self,
        target: Target,
        weighting: Weighting,
        draws: NoiseDraws,
        *,
        bound_weight: float | None,
        eight_bit: bool,
    ) -> None:
        self._target = target
        self._draws = draws
        self._bound_weight = bound_weight
        self._eight_bit = eight_bit
        self._weight_T = weighting.weight(target.schedule.snr, target.per_image_error()).float()

    def __call__(self, network: nn.Module, batch: Batch, labels: Conditioning, rng: Rng) -> LossOut:
        """One loss per row, [B]."""
        schedule, x0_BCHW = self._target.schedule, batch["image"]
        t_B = self._draws.integers(rng, schedule.timesteps)
        eps_BCHW = rng.normal(*x0_BCHW.shape[1:])
        given = labels.draw(batch, rng)
        xt_BCHW = schedule.add_noise(x0_BCHW, eps_BCHW, t_B)
        output_BCHW = predict(network, xt_BCHW, t_B, given)
        error_BCHW = output_BCHW[:, : x0_BCHW.shape[1]] - self._target.of(x0_BCHW, eps_BCHW, t_B)
        loss_B = self._weight(t_B) * error_BCHW.square().mean(dim=(1, 2, 3))
        metrics = quartiles(loss_B.detach(), t_B, schedule.timesteps)
        if self._bound_weight is not None:
            bound_B = self._bound(output_BCHW, x0_BCHW, xt_BCHW, t_B)
            loss_B = loss_B + self._bound_weight * bound_B
            metrics["bound"] = bound_B.detach()
        return LossOut(loss_B, metrics)

    def _weight(self, t_B: Tensor) -> Tensor:
        if self._weight_T.device != t_B.device:
            self._weight_T = self._weight_T.to(t_B.device)
        return self._weight_T[t_B]

    def _bound(self, output_BCHW: Tensor, x0_BCHW: Tensor, xt_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """T L_t in bits per dimension, [B], with a gradient to the variances alone."""
        schedule, channels = self._target.schedule, x0_BCHW.shape[1]
        fixed_BCHW = output_BCHW[:, :channels].detach()
        found = self._target.read(torch.cat([fixed_BCHW, output_BCHW[:, channels:]], dim=1), xt_BCHW, t_B)
        nats_B = torch.where(
            t_B == 0,
            decoder_nats(found, x0_BCHW, open_ends=self._eight_bit),
            middle_nats(found, x0_BCHW, schedule, t_B),
        )
        return nats_B * schedule.timesteps / (x0_BCHW[0].numel() * math.log(2))
