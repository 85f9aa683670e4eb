"""The scale of a first stage's latents, kept with the weights of the network that models them.

Latents are multiplied by a factor that brings their standard deviation to one (Rombach et al. 2022, app. D.1:
measured on the first batch). Or each channel is brought to mean zero and standard deviation one by itself
(Karras et al. 2024, EDM2; Yao et al. 2025, VA-VAE).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST_STD = 1e-6


class ScalesLatents(nn.Module):
    """Mixed into a network of latents: the scale, which thus travels with every copy of the weights."""

    latent_scale: Tensor
    latent_shift: Tensor | None

    def scale_latents(self, factor: float, channels: int = 0) -> None:
        """Set the factor of a freshly built network.

        With `channels`, each of so many has a factor and a shift of its own, [channels, 1, 1].
        """
        own = torch.full((channels, 1, 1), float(factor)) if channels else torch.tensor(float(factor))
        self.register_buffer("latent_scale", own)
        self.register_buffer("latent_shift", torch.zeros(channels, 1, 1) if channels else None)

    def measure_latents(self, z_BChw: Tensor) -> None:
        """Set factor and shift by these latents."""
        if self.latent_shift is None:
            self.latent_scale.copy_(1 / z_BChw.std().clamp(min=LEAST_STD))
            return
        std_C, mean_C = torch.std_mean(z_BChw, (0, 2, 3))
        self.latent_shift.copy_(mean_C[:, None, None])
        self.latent_scale.copy_(1 / std_C.clamp(min=LEAST_STD)[:, None, None])

    def inward(self, z_BChw: Tensor) -> Tensor:
        """Latents as the network sees them."""
        shifted = z_BChw if self.latent_shift is None else z_BChw - self.latent_shift
        return shifted * self.latent_scale

    def outward(self, x_BChw: Tensor) -> Tensor:
        """Back to those of the autoencoder."""
        z_BChw = x_BChw / self.latent_scale
        return z_BChw if self.latent_shift is None else z_BChw + self.latent_shift
