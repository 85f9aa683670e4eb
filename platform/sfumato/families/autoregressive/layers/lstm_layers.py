"""The two LSTM layers of PixelRNN (van den Oord et al. 2016, "Pixel recurrent neural networks", sec. 3).

    [o, f, i, g] = K_ss * h' + K_is * x,    c = f c' + i g,    h = o tanh(c)

In a Row LSTM, ' means the row above, K_ss reaches one pixel to both sides of it, and K_is sees the pixel and
the one to its left. In a Diagonal BiLSTM, ' means the diagonal before: the pixel to the left and the one
above. A second LSTM goes from the right; its result is moved down by a row, so that it sees nothing to come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LstmLayer(nn.Module, ABC):
    """Features [B, D, H, W] to hidden states of the same size; a pixel sees itself and those before it."""

    @abstractmethod
    def forward(self, x_BDHW: Tensor) -> Tensor: ...


class RowLstm(LstmLayer):
    """Row after row, all of its pixels at once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.given = nn.Conv2d(width, 4 * width, (1, 2))
        self.state = nn.Conv1d(width, 4 * width, 3, padding=1, bias=False)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        given = self.given(F.pad(x_BDHW, (1, 0)))
        h = c = torch.zeros_like(x_BDHW[:, :, 0])
        rows = []
        for row in given.unbind(2):
            h, c = _step(row + self.state(h), c)
            rows.append(h)
        return torch.stack(rows, dim=2)


class DiagonalBiLstm(LstmLayer):
    """Diagonal after diagonal, from the left and from the right."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.right = _Diagonal(width)
        self.left = _Diagonal(width)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        other = self.left(x_BDHW.flip(3)).flip(3)
        out: Tensor = self.right(x_BDHW) + F.pad(other, (0, 0, 1, 0))[:, :, :-1]
        return out


class _Diagonal(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.given = nn.Conv2d(width, 4 * width, 1)
        self.state = nn.Conv1d(width, 4 * width, 2, bias=False)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        width = x_BDHW.shape[3]
        given = skewed(self.given(x_BDHW))
        h = c = torch.zeros_like(x_BDHW[:, :, :, 0])
        columns = []
        for column in given.unbind(3):
            h, c = _step(column + self.state(F.pad(h, (1, 0))), c)
            columns.append(h)
        return straightened(torch.stack(columns, dim=3), width)


def _step(gates_B4DL: Tensor, c_BDL: Tensor) -> tuple[Tensor, Tensor]:
    o, f, i, g = gates_B4DL.chunk(4, dim=1)
    c_BDL = f.sigmoid() * c_BDL + i.sigmoid() * g.tanh()
    return o.sigmoid() * c_BDL.tanh(), c_BDL


def skewed(x_BCHW: Tensor) -> Tensor:
    """Row i moved to the right by i, [B, C, H, W + H - 1]: a diagonal becomes a column."""
    height = x_BCHW.shape[2]
    rows = [F.pad(x_BCHW[:, :, row], (row, height - 1 - row)) for row in range(height)]
    return torch.stack(rows, dim=2)


def straightened(x_BCHL: Tensor, width: int) -> Tensor:
    """The inverse of `skewed`."""
    rows = [x_BCHL[:, :, row, row : row + width] for row in range(x_BCHL.shape[2])]
    return torch.stack(rows, dim=2)
