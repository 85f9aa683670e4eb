"""The training loss: L_simple of Ho et al. 2020, eq. 14, on the noise or on v.

    L = E_{x_0, t, eps} || f(x_t, t, c) - y ||^2        y = eps (Ho 2020) or v_t (Salimans & Ho 2022)

with t uniform over the T timesteps and c the class, sometimes dropped. The square is averaged over pixels
rather than summed, as in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn

from sfumato.core.batch import Batch
from sfumato.core.family import LossOut
from sfumato.core.rng import Rng
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule
from sfumato.families.diffusion.quartiles import quartiles

if TYPE_CHECKING:
    from sfumato.families.diffusion.labels import LabelDropout


def denoising_loss(
    network: nn.Module,
    batch: Batch,
    rng: Rng,
    *,
    schedule: NoiseSchedule,
    prediction: Literal["epsilon", "v"],
    labels: LabelDropout,
) -> LossOut:
    """Squared error of the prediction at one random timestep per row, [B]."""
    x0_BCHW = batch["image"]
    t_B = rng.integers(schedule.timesteps)
    eps_BCHW = rng.normal(*x0_BCHW.shape[1:])
    label_B = labels.draw(batch, rng)
    xt_BCHW = schedule.add_noise(x0_BCHW, eps_BCHW, t_B)
    target_BCHW = eps_BCHW if prediction == "epsilon" else schedule.velocity(x0_BCHW, eps_BCHW, t_B)
    error_BCHW = predict(network, xt_BCHW, t_B, label_B) - target_BCHW
    loss_B = error_BCHW.square().mean(dim=(1, 2, 3))
    return LossOut(loss_B, quartiles(loss_B.detach(), t_B, schedule.timesteps))
