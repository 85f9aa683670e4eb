"""Noise levels between sigma_min and sigma_max (Karras et al. 2022, eq. 5), in proportion to the data.

The papers' levels suit data with a standard deviation of 0.5: natural images in [-1, 1], and the latents of
EDM2, which are scaled to it. Ours are scaled to 1, and their levels with them: the signal-to-noise ratios are
then the papers'. Levels of pixels do not follow `sigma_data`: recipes set both for their data.
"""

from __future__ import annotations

PIXEL_STD, LATENT_STD = 0.5, 1.0
"""Standard deviations of natural images in [-1, 1] (Karras et al. 2022), and of scaled latents."""
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""The papers' range, for data of PIXEL_STD."""
IN_PROPORTION = f"for pixels, and on latents this times sigma_data / {PIXEL_STD}"
"""What descriptions of fields say."""


def data_std(given: float | None, *, latents: bool) -> float:
    """sigma_data: as given, or the default of the space that the model works on."""
    if given is not None:
        return given
    return LATENT_STD if latents else PIXEL_STD


def noise_scale(sigma_data: float, *, latents: bool) -> float:
    """The factor on the papers' noise levels."""
    return sigma_data / PIXEL_STD if latents else 1.0


def sigma_range(low: float | None, high: float | None, scale: float = 1.0) -> tuple[float, float]:
    """Least and largest noise level: as given, or the papers' times `scale`."""
    return SIGMA_MIN * scale if low is None else low, SIGMA_MAX * scale if high is None else high


def karras_sigmas(number: int, *, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """`number` >= 2 falling noise levels, sigma_max first and sigma_min last:

    sigma_i = (sigma_max^(1/rho) + i/(n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,  i = 0 .. n - 1
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    inner = [(high + i / (number - 1) * (low - high)) ** rho for i in range(1, number - 1)]
    return [sigma_max, *inner, sigma_min]
