"""Muon: momentum whose matrices are orthogonalised before each update (Jordan et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic of the Newton-Schulz iteration, chosen by Jordan et al. for the steepest slope at zero."""
_ITERATIONS = 5
_TINY = 1e-7


@dataclass(frozen=True)
class Rows:
    """How a rank that holds some rows of every parameter gets at whole matrices."""

    whole: Callable[[nn.Parameter, Tensor], Tensor]
    """All rows of a tensor of which this rank holds the parameter's; every rank has to call it."""
    mine: Callable[[nn.Parameter, Tensor], Tensor]
    """This rank's rows of a whole tensor."""


class Muon(torch.optim.Optimizer):
    """Muon for matrices, and AdamW for what is none (biases, norms) or is asked to be left out.

    A convolution's kernel counts as the matrix [out, in x height x width]. The update of a matrix of shape
    [a, b] is multiplied by 0.2 sqrt(max(a, b)), so that its root mean square is AdamW's and one learning
    rate and weight decay serve both (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4).

    `matrices` and `others` are torch's parameter groups. Both share `state` and `param_groups`.
    """

    def __init__(
        self,
        matrices: Sequence[dict[str, Any]],
        others: Sequence[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        rows: Rows | None = None,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._matrices = tuple(self.param_groups)
        self._rows = rows
        self._others: torch.optim.Optimizer | None = None
        if others:
            self._others = torch.optim.AdamW(
                others, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
            )
            self._others.state = self.state
            self.param_groups += self._others.param_groups

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self._matrices:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        if self._others is not None:
            self._others.step()

    def _update(self, parameter: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        kept = self.state[parameter]
        if "momentum_buffer" not in kept:
            kept["momentum_buffer"] = torch.zeros_like(grad)
        kept["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(kept["momentum_buffer"], group["momentum"])  # Nesterov's
        whole = update if self._rows is None else self._rows.whole(parameter, update)
        matrix = orthogonal(whole.flatten(1))
        rate = group["lr"] * 0.2 * math.sqrt(max(matrix.shape))
        update = matrix.view_as(whole)
        if self._rows is not None:
            update = self._rows.mine(parameter, update)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition U S V^T, roughly: singular values end within 0.7 to 1.2.

    Shape [a, b]. In bfloat16, as by the authors, on an accelerator; on a CPU in float32, so that updates do
    not depend on the order in which ranks add gradients.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    x = x / x.norm().clamp(min=_TINY)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T
