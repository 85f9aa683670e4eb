"""Rows of a micro-batch that meet in a loss: noise assigned to images, and the velocities of other rows."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def nearest(x0_BCHW: Tensor, eps_BCHW: Tensor) -> Tensor:
    """The noise in the order in which the sum over rows of ||x_0 - eps||^2 is least, [B, C, H, W].

    Minibatch optimal transport (Tong et al. 2024, alg. 1; Pooladian et al. 2023, sec. 4). Exact, in O(B^3) on
    the host, which is small beside a step up to some hundred rows. Classes are not looked at: with labels
    the noise of a class is no longer quite normal.
    """
    from scipy.optimize import linear_sum_assignment

    # ||x - e||^2 less what no assignment changes.
    cost_BB = -(x0_BCHW.double().flatten(1) @ eps_BCHW.double().flatten(1).T)
    _, order = linear_sum_assignment(cost_BB.cpu().numpy())
    return eps_BCHW[torch.as_tensor(order, device=eps_BCHW.device)]


def to_others(velocity_BCHW: Tensor, true_BCHW: Tensor) -> Tensor:
    """Mean squared distance of each velocity to the true one of its neighbour in the micro-batch, [B].

    Contrastive flow matching (Stoica et al. 2025, eq. 5): rows come in random order, so a neighbour is any
    other row. Neighbours are rows 2i and 2i + 1; a micro-batch of one row has none, and the distance is 0.
    """
    rows = len(velocity_BCHW)
    if rows == 1:
        return velocity_BCHW.new_zeros(1)
    assert rows % 2 == 0, "compared_rows asks for pairs"
    other_BCHW = true_BCHW.reshape(-1, 2, *true_BCHW.shape[1:]).flip(1).flatten(0, 1)
    distance_B: Tensor = (velocity_BCHW - other_BCHW).square().mean(dim=(1, 2, 3))
    return distance_B
