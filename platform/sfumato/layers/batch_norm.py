"""Batch normalisation without stored statistics (Ioffe & Szegedy 2015).

In training every pass normalises by the statistics of its own rows, those of one micro-batch, whether the
network is being trained or is a passive one in eval mode, so generator and discriminator see the
same images in both of their phases. The recipe's `train.micro_batch` makes these rows the same for any number
of workers.

For sampling, where an image must not depend on its neighbours, `measure` fixes the statistics to those of
chosen passes: "standing statistics" (Brock, Donahue, Simonyan 2019, sec. 4.1), which unlike running averages
belong to the current weights, including averaged ones. There is nothing to save, to reduce over ranks or to
resume.

The family keeps running averages, which the papers use for sampling, as its state (`core.state`): `watch`
and `taken` give the statistics of a pass, `running_after` moves the averages, `stand` normalises by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5
MOMENTUM = 0.1
"""Weight of a step's statistics in the running averages, as in torch."""


class BatchNorm(nn.Module):
    """Zero mean and unit variance of every channel over rows and pixels, [B, C, ...]; no gain, no bias."""

    def __init__(self, channels: int, eps: float = EPS) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self._standing: tuple[Tensor, Tensor] | None = None
        self._moments: list[tuple[Tensor, Tensor]] | None = None
        self._count = 0

    def forward(self, x_BC: Tensor) -> Tensor:
        if self._standing is not None:
            mean_C, variance_C = self._standing
            return F.batch_norm(x_BC, mean_C, variance_C, training=False, eps=self.eps)
        if self._moments is not None:
            self._moments.append(_moments(x_BC))
            self._count = x_BC.numel() // self.channels
        return F.batch_norm(x_BC, None, None, training=True, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}"

    def watch(self) -> None:
        """Forget the standing statistics, and record the moments of the following passes."""
        self._standing, self._moments = None, []

    def taken(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance [C] float64 of the one pass since `watch`; ends the recording."""
        moments = self._moments or []
        assert len(moments) == 1, "not one pass since `watch`"
        mean_C, square_C = moments[0]
        self._moments = None
        variance_C = (square_C - mean_C.square()).clamp_min(0)
        return mean_C, variance_C * self._count / max(1, self._count - 1)

    def stand(self, mean_C: Tensor, variance_C: Tensor) -> None:
        """Normalise from now on by these statistics."""
        self._standing = (mean_C.float(), variance_C.float())

    def settle(self) -> None:
        """Normalise from now on by the mean moments of the passes since `watch`, which have equal rows."""
        assert self._moments, "no pass has reached this layer"
        mean_C, square_C = (torch.stack(kept).mean(0) for kept in zip(*self._moments, strict=True))
        self._standing = (mean_C.float(), (square_C - mean_C.square()).clamp_min(0).float())
        self._moments = None


@torch.no_grad()
def measure(network: nn.Module, passes: Iterable[Callable[[], object]]) -> None:
    """Run `passes` through `network` and use their statistics in all later ones.

    Each pass normalises by its own rows, as in training. All passes must have the same number of rows. A
    network without `BatchNorm` is not run.
    """
    layers = list(layers_of(network))
    if not layers:
        return
    for layer in layers:
        layer.watch()
    for run in passes:
        run()
    for layer in layers:
        layer.settle()


def layers_of(network: nn.Module) -> Iterator[BatchNorm]:
    """All batch normalisations of a network."""
    return (module for module in network.modules() if isinstance(module, BatchNorm))


def running_after(running: Tensor, summed: Tensor, passes: Tensor, momentum: float = MOMENTUM) -> Tensor:
    """(1 - momentum) running + momentum (mean over the passes); `running` if there was no pass."""
    moved = (1 - momentum) * running + momentum * summed / passes.clamp_min(1)
    return torch.where(passes > 0, moved, running)


def _moments(x_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square of every channel; float64, since the variance is a small difference of the two."""
    values = x_BC.detach().double()
    over = [dim for dim in range(values.dim()) if dim != 1]
    return values.mean(over), values.square().mean(over)
