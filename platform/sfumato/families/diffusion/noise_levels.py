"""Noise levels between sigma_min and sigma_max (Karras et al. 2022, eq. 5)."""

from __future__ import annotations


def karras_sigmas(number: int, *, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """`number` >= 2 falling noise levels, sigma_max first and sigma_min last:

    sigma_i = (sigma_max^(1/rho) + i/(n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,  i = 0 .. n - 1
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    inner = [(high + i / (number - 1) * (low - high)) ** rho for i in range(1, number - 1)]
    return [sigma_max, *inner, sigma_min]
