"""Layers that show the discriminator how varied a batch is.

- `MinibatchStd`: the standard deviation over a group of images, as a further map (Karras et al. 2018, sec.
  3).
- `MinibatchDiscrimination`: how near each image's features are to those of the others (Salimans et al. 2016,
  sec. 3.2).

Both compare rows of one micro-batch, which `train.micro_batch` makes the same for any number of workers. A
group of the standard deviation is so many consecutive rows: rows of one stream, if each stream has a multiple
of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError

EPS = 1e-8


class MinibatchStd(nn.Module):
    """Adds one map: the standard deviation over the rows of a group, averaged over channels and pixels.

    The rows must be a multiple of the group, or fewer than it: then all of them are one group.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x_BCHW: Tensor) -> Tensor:
        rows = len(x_BCHW)
        group = min(self.group, rows)
        if rows % group:
            raise ConfigError(
                f"model.network.minibatch_group: {group} images form a group, but a micro-batch has {rows}; "
                f"make train.micro_batch (train.batch without one) a multiple of {group}"
            )
        groups_NGCHW = x_BCHW.float().view(-1, group, *x_BCHW.shape[1:])
        variance_NCHW = groups_NGCHW.var(1, correction=0)
        std_N = (variance_NCHW + EPS).sqrt().mean((1, 2, 3))
        map_B1HW = std_N.repeat_interleave(group).view(-1, 1, 1, 1).expand(-1, 1, *x_BCHW.shape[2:])
        return torch.cat([x_BCHW, map_B1HW.to(x_BCHW.dtype)], 1)


class MinibatchDiscrimination(nn.Module):
    """Adds `kernels` features: o_b(x_i) = sum over j != i of exp(-|M_i,b - M_j,b|_1), M_i = f(x_i) T."""

    def __init__(self, features: int, kernels: int, width: int = 5) -> None:
        super().__init__()
        self.tensor = nn.Parameter(torch.randn(features, kernels, width) / features**0.5)

    def forward(self, phi_BF: Tensor) -> Tensor:
        with torch.autocast(phi_BF.device.type, enabled=False):
            m_BKW = torch.einsum("bf,fkw->bkw", phi_BF.float(), self.tensor.float())
            distance_BBK = (m_BKW[:, None] - m_BKW[None]).abs().sum(3)
            near_BK = (-distance_BBK).exp().sum(1) - 1  # without the image itself
        return torch.cat([phi_BF, near_BK.to(phi_BF.dtype)], 1)
