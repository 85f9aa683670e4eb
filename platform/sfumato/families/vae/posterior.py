"""Diagonal Gaussian posteriors: their KL divergence from the prior, their densities."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0
"""The range that latent diffusion's autoencoders clamp to, against overflow of exp."""


class Posterior(NamedTuple):
    """q(z | x): mean and log-variance of the same shape, rows first."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, parameters_B2D: Tensor) -> Posterior:
        """From a tensor whose second axis holds all means, then all log-variances."""
        mean, logvar = parameters_B2D.float().chunk(2, dim=1)
        return cls(mean, logvar.clamp(MIN_LOGVAR, MAX_LOGVAR))

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise (the reparameterisation of Kingma & Welling 2014, sec. 2.4)."""
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) of each latent number, in nats (Kingma & Welling 2014, App. B)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar)

    def log_ratio(self, noise: Tensor) -> Tensor:
        """log N(z; 0, I) - log q(z | x) at z = `sample(noise)`, summed over all but the rows, [B]."""
        z = self.sample(noise)
        prior = -0.5 * (z**2 + math.log(2 * math.pi))
        posterior = -0.5 * (noise**2 + math.log(2 * math.pi) + self.logvar)
        return (prior - posterior).flatten(1).sum(dim=1)
