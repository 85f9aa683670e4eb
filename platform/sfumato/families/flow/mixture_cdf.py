"""The coupling of Flow++ (Ho et al. 2019, eq. 14 to 16): the distribution function of a mixture of logistics.

    y = exp(a) logit(F(x)) + b,    F(x) = sum_k pi_k sigmoid((x - m_k) / s_k)

It has no inverse in closed form. The logit of F lies between those of its components, which are straight
lines, so that the answer is bracketed and bisection finds it to the last digits of its type.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_BISECTIONS = 60


class Logistics(NamedTuple):
    """Mixtures of K logistics: log weights, means and log scales, K on the last axis."""

    log_weight: Tensor
    mean: Tensor
    log_scale: Tensor

    @classmethod
    def of(cls, raw: Tensor) -> Logistics:
        """From 3 K numbers on the last axis. Zeros are logistics of scale 1 around places from -1 to 1: were
        they alike, their gradients would be, and they would stay alike."""
        weight, mean, log_scale = raw.to(torch.promote_types(raw.dtype, torch.float32)).chunk(3, dim=-1)
        components = mean.shape[-1]
        spread = torch.linspace(-1, 1, components, device=raw.device) if components > 1 else 0.0
        return cls(F.log_softmax(weight, dim=-1), mean + spread, log_scale)

    def logit(self, x: Tensor) -> Tensor:
        """logit(F(x)) elementwise."""
        below, above = self._log_tails(x)
        return below - above

    def logit_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """logit(F(x)) and the logarithm of its derivative, log f - log F - log(1 - F)."""
        below, above = self._log_tails(x)
        z = self._z(x)
        density = F.logsigmoid(z) + F.logsigmoid(-z) - self.log_scale
        log_density = torch.logsumexp(self.log_weight + density, dim=-1)
        return below - above, log_density - below - above

    def invert(self, logit: Tensor) -> Tensor:
        """x with logit(F(x)) = logit, without gradients."""
        with torch.no_grad():
            each = self.mean + self.log_scale.exp() * logit[..., None]
            low, high = each.amin(-1), each.amax(-1)
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                under = self.logit(middle) < logit
                low, high = torch.where(under, middle, low), torch.where(under, high, middle)
            return (low + high) / 2

    def _z(self, x: Tensor) -> Tensor:
        return (x[..., None] - self.mean) * (-self.log_scale).exp()

    def _log_tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log F and log(1 - F)."""
        z = self._z(x)
        below = torch.logsumexp(self.log_weight + F.logsigmoid(z), dim=-1)
        return below, torch.logsumexp(self.log_weight + F.logsigmoid(-z), dim=-1)
