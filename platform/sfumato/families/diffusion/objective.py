"""The training loss: L_simple of Ho et al. 2020, eq. 14, on the noise or on v.

    L = E_{x_0, t, eps} || f(x_t, t, c) - y ||^2        y = eps (Ho 2020) or v_t (Salimans & Ho 2022)

with t uniform over the T timesteps and c the class, replaced by the null class with probability
`label_dropout` (Ho & Salimans 2022, algorithm 1). The square is averaged over pixels rather than summed,
as in the authors' code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch
from sfumato.core.family import LossOut
from sfumato.core.rng import Rng
from sfumato.families.diffusion.network import predict
from sfumato.families.diffusion.schedule import NoiseSchedule


def denoising_loss(
    network: nn.Module,
    batch: Batch,
    rng: Rng,
    *,
    schedule: NoiseSchedule,
    prediction: Literal["epsilon", "v"],
    null_class: int | None,
    label_dropout: float,
) -> LossOut:
    """Squared error of the prediction at one random timestep a row, [B].

    `null_class` is None for a model without labels.
    """
    x0_BCHW = batch["image"]
    t_B = rng.integers(schedule.timesteps)
    eps_BCHW = rng.normal(*x0_BCHW.shape[1:])
    label_B = None
    if null_class is not None:
        label_B = drop_labels(batch["label"], rng, null_class=null_class, probability=label_dropout)
    xt_BCHW = schedule.add_noise(x0_BCHW, eps_BCHW, t_B)
    target_BCHW = eps_BCHW if prediction == "epsilon" else schedule.velocity(x0_BCHW, eps_BCHW, t_B)
    error_BCHW = predict(network, xt_BCHW, t_B, label_B) - target_BCHW
    loss_B = error_BCHW.square().mean(dim=(1, 2, 3))
    return LossOut(loss_B, quartiles(loss_B.detach(), t_B, schedule.timesteps))


def drop_labels(label_B: Tensor, rng: Rng, *, null_class: int, probability: float) -> Tensor:
    """The labels, each replaced by the null class with the given probability."""
    dropped_B = rng.uniform() < probability
    return torch.where(dropped_B, torch.full_like(label_B, null_class), label_B)


def quartiles(loss_B: Tensor, t_B: Tensor, timesteps: int) -> dict[str, Tensor]:
    """The loss by quarter of the timesteps, from least noise (q1) to most (q4), each [B].

    A row outside the quarter counts as zero and a row inside it by the inverse of the quarter's
    probability, so that the plain mean over any rows, ranks and steps estimates the quarter's mean loss.
    """
    quarter_B = (t_B * 4) // timesteps
    found = {}
    for quarter in range(4):
        size = -(-(quarter + 1) * timesteps // 4) - (-(-quarter * timesteps // 4))
        if size:
            weight_B = (quarter_B == quarter).float() * (timesteps / size)
            found[f"loss_q{quarter + 1}"] = loss_B * weight_B
    return found
