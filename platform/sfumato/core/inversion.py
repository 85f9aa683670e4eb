"""DDIM inversion: the noise from which a deterministic sampler draws an image (Song, Meng, Ermon 2021, sec.
4.3).

A step back from x' to x solves for the x whose own step leads to x', by fixed-point iteration (Garibi et al.
2024, ReNoise, sec. 3, without its noise correction). Where the image prevails, a > s, what is iterated is the
noise, elsewhere the image, since that changes little:

    x = a / a' (x' - s' eps(x)) + s eps(x)   or   x = a x_0(x) + s / s' (x' - a' x_0(x))
"""

from __future__ import annotations

from torch import Tensor

from sfumato.core.paths import Path


def inverted(path: Path, x: Tensor, first: int, refine: int) -> Tensor:
    """The point at level `first` that leads to x_0, by `refine` iterations a step; 1 is plain DDIM
    inversion."""
    for at in range(path.steps - 1, first - 1, -1):
        x = _back(path, x, at, refine)
    return x


def followed(path: Path, x: Tensor, first: int) -> Tensor:
    """x_0 from the point at level `first`, by DDIM."""
    for at in range(first, path.steps):
        x = _ahead(path, x, at)
    return x


def _ahead(path: Path, x: Tensor, at: int) -> Tensor:
    """The deterministic step to the next level."""
    (a, s, _), (a_next, s_next, _) = path.levels[at], path.levels[at + 1]
    image = path.image(x, at)
    eps = (x - a * image) / s
    return a_next * image + s_next * eps


def _back(path: Path, x: Tensor, at: int, times: int) -> Tensor:
    """The point at level `at` whose step leads to x."""
    (a, s, _), (a_next, s_next, _) = path.levels[at], path.levels[at + 1]
    found = x
    for _ in range(times):
        image = path.image(found, at)
        if s > a and s_next:
            found = a * image + s / s_next * (x - a_next * image)
        else:
            eps = (found - a * image) / s
            found = a / a_next * (x - s_next * eps) + s * eps
    return found
