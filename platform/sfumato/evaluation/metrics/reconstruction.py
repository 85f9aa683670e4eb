"""How much of an image a reconstruction keeps: PSNR and SSIM (Wang et al. 2004), on 8-bit values.

In addition, `rfd_<features>` (rFID on InceptionV3) is the Fréchet distance of the reconstructions' features.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.evaluation.metrics.metric import PairMetric
from sfumato.evaluation.statistics import Float64Array, UInt8Array

RANGE = 255.0
HIGHEST = 100.0
"""PSNR of a perfect reconstruction, in decibels: infinity would swallow every mean."""
WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03


class Psnr:
    """Peak signal-to-noise ratio in decibels, 10 log10(255^2 / MSE) for each image; at most 100."""

    name = "psnr"
    higher_is_better = True

    def problems(self, data: DataSpec) -> list[str]:
        """None."""
        return []

    def compare(self, real_NHWC: UInt8Array, made_NHWC: UInt8Array) -> Float64Array:
        """Decibels [N]."""
        error_N = np.square(real_NHWC.astype(np.float64) - made_NHWC).mean(axis=(1, 2, 3))
        lowest = RANGE**2 / 10 ** (HIGHEST / 10)
        psnr_N: Float64Array = 10 * np.log10(RANGE**2 / np.maximum(error_N, lowest))
        return psnr_N


class Ssim:
    """Structural similarity (Wang et al. 2004, eq. 13), in [-1, 1].

    Gaussian window of 11x11 and sigma 1.5, population moments, images padded by reflection, the mean over
    all places and channels: as in torchmetrics. (The authors' program leaves out places near the edge.)
    """

    name = "ssim"
    higher_is_better = True

    def problems(self, data: DataSpec) -> list[str]:
        """A reflection is as wide as half the window."""
        least = WINDOW // 2 + 1
        if min(data.height, data.width) >= least:
            return []
        size = f"{data.width}x{data.height}"
        return [f"ssim needs images of {least}x{least} or more, this data is {size}: leave it out"]

    def compare(self, real_NHWC: UInt8Array, made_NHWC: UInt8Array) -> Float64Array:
        """Similarities [N]."""
        x, y = (_continued(images) for images in (real_NHWC, made_NHWC))
        c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
        mean_x, mean_y = _blur(x), _blur(y)
        var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
        covariance = _blur(x * y) - mean_x * mean_y
        light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * covariance + c2) / (var_x + var_y + c2)
        ssim_N: Float64Array = (light * structure).mean(dim=(1, 2, 3)).numpy()
        return ssim_N


def _continued(images_NHWC: UInt8Array) -> Tensor:
    """[N, C, H + 10, W + 10] float64."""
    x_NCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).double()
    return F.pad(x_NCHW, (WINDOW // 2,) * 4, mode="reflect")


def _blur(x_NCHW: Tensor) -> Tensor:
    """The window's weighted mean at every place of the image, by rows and by columns."""
    offset = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weight = torch.exp(-0.5 * (offset / SIGMA) ** 2)
    weight = (weight / weight.sum()).expand(x_NCHW.shape[1], 1, 1, WINDOW)
    rows = F.conv2d(x_NCHW, weight, groups=x_NCHW.shape[1])
    return F.conv2d(rows, weight.transpose(2, 3), groups=x_NCHW.shape[1])


PAIR_METRICS: tuple[PairMetric, ...] = (Psnr(), Ssim())
