"""Turning an image about its centre as its continuous signal turns (Karras et al. 2021, app. E.3).

An image of N pixels holds the frequencies of a square, of half a cycle per pixel in each direction. A turned
one would need those of the turned square, so only what lies in both can be compared:

    rotated          the frequencies in both squares, turned
    as_if_rotated    an image as it is, without the frequencies that one turned this way cannot have

The ideal filter is the Fourier transform of the octagon that both squares share, in closed form. As in the
paper it is windowed by two Lanczos windows of radius 3, convolved with one another, and the image is read
between the taps of a grid four times as fine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

RADIUS = 3
"""Of a Lanczos window, in pixels; the filter reaches twice as far."""
REACH = 2 * RADIUS
FINER = 4


def rotation(angle: float) -> Tensor:
    """[2, 2] float64, from x (right) towards y (down)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)


def rotated(x_CHH: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """The image float64 turned by an angle in radians, and where it is right [H, H], bool."""
    side = x_CHH.shape[-1]
    kernel = _kernel(-angle, FINER)
    fine = F.conv_transpose2d(x_CHH.double()[:, None], kernel[None, None], stride=FINER)
    # Where each pixel's content comes from, in pixels from the first.
    at_H = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y_HH, x_HH = torch.meshgrid(at_H, at_H, indexing="ij")
    from_HH2 = torch.stack([x_HH, y_HH], -1) @ rotation(-angle).T + (side - 1) / 2
    place_HH2 = (from_HH2 * FINER + kernel.shape[0] // 2) * 2 / (fine.shape[-1] - 1) - 1
    grid = place_HH2.expand(len(fine), -1, -1, -1)
    found_CHH = F.grid_sample(fine, grid, mode="bilinear", align_corners=True)[:, 0]
    return found_CHH, _whole(from_HH2, side)


def as_if_rotated(x_CHH: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """The image float64 with the frequencies that it would have if it had been turned by this angle."""
    side = x_CHH.shape[-1]
    kernel = _kernel(angle, 1)
    found_CHH = F.conv2d(x_CHH.double()[:, None], kernel[None, None], padding=kernel.shape[0] // 2)[:, 0]
    at_H = torch.arange(side, dtype=torch.float64)
    return found_CHH, _whole(torch.stack(torch.meshgrid(at_H, at_H, indexing="ij"), -1), side)


def _whole(place_HH2: Tensor, side: int) -> Tensor:
    """Where no tap of the filter lies outside the image."""
    return ((place_HH2 > REACH - 1) & (place_HH2 < side - REACH)).all(-1)


def _kernel(angle: float, finer: int) -> Tensor:
    """[K, K], K = 2 * REACH * finer - 1: what both the square and the square turned by `angle` hold."""
    reach = REACH * finer - 1
    at_K = torch.arange(-reach, reach + 1, dtype=torch.float64) / finer
    y_KK, x_KK = torch.meshgrid(at_K, at_K, indexing="ij")
    step = FINER // finer
    first = step - 1  # so that the middle tap stays the middle
    kernel = _shared(x_KK, y_KK, angle) * _window(angle)[first::step, first::step]
    # Taps of one phase, which make one value of the finer image, add up to 1.
    padded = F.pad(kernel, (0, 1, 0, 1)).view(2 * REACH, finer, 2 * REACH, finer)
    return (padded / padded.sum((0, 2), keepdim=True)).view(kernel.shape[0] + 1, -1)[:-1, :-1]


def _shared(x_KK: Tensor, y_KK: Tensor, angle: float) -> Tensor:
    """The Fourier transform of the frequencies in both squares.

    Their polygon touches a circle of radius 1/2 at the middle of each square's sides. By the divergence
    theorem its transform at x is, with k = 2 pi x, outer normals n_j, sides e_j and their middles m_j,

        sum_j (k . n_j) |e_j| sin(k . m_j) sinc(k . e_j / 2) / |k|^2
    """
    quarter = math.pi / 2
    turned = angle % quarter
    normals = [at * quarter + more for at in range(4) for more in (0.0, turned)]
    if min(turned, quarter - turned) < 1e-9:
        normals = normals[::2]
    corners = []
    for here, there in zip(normals, [*normals[1:], normals[0] + 2 * math.pi], strict=True):
        radius, middle = 0.5 / math.cos((there - here) / 2), (here + there) / 2
        corners.append((radius * math.cos(middle), radius * math.sin(middle)))
    k_x, k_y = 2 * math.pi * x_KK, 2 * math.pi * y_KK
    total, area = torch.zeros_like(x_KK), 0.0
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        e_x, e_y = bx - ax, by - ay
        along = (k_x * e_x + k_y * e_y) / 2
        across = k_x * e_y - k_y * e_x
        middle_KK = (k_x * (ax + bx) + k_y * (ay + by)) / 2
        total += across * middle_KK.sin() * torch.sinc(along / math.pi)
        area += (ax * by - bx * ay) / 2
    square = k_x.square() + k_y.square()
    return torch.where(square == 0, torch.full_like(square, area), total / square.clamp_min(1e-12))


def _window(angle: float) -> Tensor:
    """The convolution of a Lanczos window with one turned by `angle`, at the finest taps."""
    half = 2 * REACH * FINER
    at_K = torch.arange(-half, half, dtype=torch.float64) / FINER
    y_KK, x_KK = torch.meshgrid(at_K, at_K, indexing="ij")
    there_KK2 = torch.stack([x_KK, y_KK], -1) @ rotation(angle)
    spectra = [
        torch.fft.fft2(_lanczos(x) * _lanczos(y))
        for x, y in ((x_KK, y_KK), (there_KK2[..., 0], there_KK2[..., 1]))
    ]
    whole: Tensor = torch.fft.fftshift(torch.fft.ifft2(spectra[0] * spectra[1]).real)
    reach = REACH * FINER - 1
    return whole[half - reach : half + reach + 1, half - reach : half + reach + 1]


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < RADIUS, torch.sinc(x / RADIUS), torch.zeros_like(x))
