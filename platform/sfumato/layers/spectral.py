"""Spectral normalisation as a function of the weight alone (Miyato, Kataoka, Koyama, Yoshida 2018, eq. 8).

    W_SN = W / sigma(W),   sigma(W) = u' W v,   u, v the first singular vectors, held constant in gradients

Miyato et al. carry u from pass to pass and improve it by one power iteration each. Its accuracy then
depends on the number of passes, which changes with the number of workers, with passive passes and with
a resumed run. Here u is computed in each pass by a few Lanczos steps with a fixed start. They cost as many
products with W as power iterations do, which is little compared with a convolution, and converge so much
faster that the start does not matter.

The paper's method is also available: a layer given a vector u by `carry` takes one power iteration from it
in every pass, and stores the improved vector in `improved`. u is then part of the family's state
(`core.state`), which advances once per step, for any number of passes and ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.rng import seeded

STEPS = 8
_SQUARINGS = 10
_TINY = 1e-12


def spectral_norm(weight: Tensor, start: Tensor, steps: int = STEPS) -> Tensor:
    """The largest singular value of `weight` seen as a matrix [out, rest]: a scalar with gradient u v'.

    `start` is any vector as long as the matrix's shorter side, see `start_vector`. Computed in float32, or
    in float64 for such weights. The value is a lower bound; with 8 steps it is within three percent even for
    random square matrices, where singular values crowd at the top, and exact where a side is at most 8.
    """
    with torch.autocast(weight.device.type, enabled=False):
        matrix = weight.flatten(1)
        if matrix.dtype != torch.float64:
            matrix = matrix.float()
        short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        with torch.no_grad():
            u = _first_left(short, start.to(short.dtype), min(steps, len(short)))
            v = F.normalize(short.T @ u, dim=0, eps=_TINY)
        norm: Tensor = u @ (short @ v)
        return norm


def start_vector(weight: Tensor) -> Tensor:
    """A fixed unit vector as long as the shorter side of `weight`, without structure that data could have."""
    rows = weight.shape[0]
    length = min(rows, weight.numel() // rows)
    with seeded("spectral norm", length):
        return F.normalize(torch.randn(length), dim=0)


def _first_left(matrix: Tensor, start: Tensor, steps: int) -> Tensor:
    """The first left singular vector of [n, m]: Lanczos on A A' with full reorthogonalisation.

    The largest eigenvector of the small projected matrix is found by squaring that matrix, without a host
    synchronisation (which `torch.linalg.eigh` has on a GPU).
    """
    basis = [F.normalize(start, dim=0, eps=_TINY)]
    images = []
    for _ in range(steps):
        image = matrix @ (matrix.T @ basis[-1])
        images.append(image)
        known = torch.stack(basis)
        rest = image - known.T @ (known @ image)
        rest = rest - known.T @ (known @ rest)
        basis.append(F.normalize(rest, dim=0, eps=_TINY))
    known = torch.stack(basis[:steps])
    power = known @ torch.stack(images).T
    power = (power + power.T) / 2
    for _ in range(_SQUARINGS):
        power = power / power.norm().clamp_min(_TINY)
        power = power @ power
    # All columns of a high power are multiples of the eigenvector; the longest is the best conditioned.
    longest = power.square().sum(0).argmax().view(1)
    return F.normalize(known.T @ power.index_select(1, longest).squeeze(1), dim=0, eps=_TINY)


class Spectral(nn.Module):
    """The common part of the layers: a weight, seen as a matrix [rows, rest], of spectral norm 1."""

    weight: Tensor
    start: Tensor
    carried: Tensor
    improved: Tensor | None = None
    """The carried vector after the iteration of the last pass."""

    def follow(self) -> None:
        """From now on, take power iterations from a carried vector."""
        self.register_buffer("carried", first_carried(len(self.weight)), persistent=False)

    @property
    def follows(self) -> bool:
        """Whether it carries a vector."""
        return "carried" in self._buffers

    @torch.no_grad()
    def carry(self, u: Tensor) -> None:
        """Start from this unit vector [rows] in the following passes."""
        self.carried.copy_(u)

    def _normalised(self) -> Tensor:
        if not self.follows:
            norm = spectral_norm(self.weight, self.start)
        else:
            norm, self.improved = power_iteration(self.weight, self.carried)
        return self.weight / norm.clamp_min(_TINY).to(self.weight.dtype)


def power_iteration(weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The estimate u' W v of the largest singular value after one iteration v = W' u, u = W v (Miyato et al.
    2018, Algorithm 1), a scalar with gradient u v', and the new u."""
    with torch.autocast(weight.device.type, enabled=False):
        matrix = weight.flatten(1)
        if matrix.dtype != torch.float64:
            matrix = matrix.float()
        with torch.no_grad():
            v = F.normalize(matrix.T @ u.to(matrix.dtype), dim=0, eps=_TINY)
            u = F.normalize(matrix @ v, dim=0, eps=_TINY)
        norm: Tensor = u @ (matrix @ v)
        return norm, u


def first_carried(rows: int) -> Tensor:
    """The unit vector that power iterations start with."""
    with seeded("power iteration", rows):
        return F.normalize(torch.randn(rows), dim=0)


class SpectralConv2d(nn.Conv2d, Spectral):
    """A convolution whose weight, seen as [out, in * height * width], has spectral norm 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.register_buffer("start", start_vector(self.weight), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self._conv_forward(x_BCHW, self._normalised(), self.bias)
        return out_BCHW


class SpectralLinear(nn.Linear, Spectral):
    """A linear map of spectral norm 1."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("start", start_vector(self.weight), persistent=False)

    def forward(self, x_BC: Tensor) -> Tensor:
        return F.linear(x_BC, self._normalised(), self.bias)


class SpectralEmbedding(nn.Embedding, Spectral):
    """Rows of a matrix of spectral norm 1."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.register_buffer("start", start_vector(self.weight), persistent=False)

    def forward(self, index_B: Tensor) -> Tensor:
        return F.embedding(index_B, self._normalised())
