"""From the value range of networks to the bytes of an image, and back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Images = NDArray[np.uint8]
"""uint8 [N, H, W, C]."""


def to_uint8(x_NCHW: Tensor) -> Images:
    """Images [N, C, H, W] in [-1, 1] as uint8 [N, H, W, C], rounded as diffusers rounds."""
    unit = (x_NCHW.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return (unit * 255).round().astype(np.uint8)


def from_uint8(images_NHWC: Images) -> Tensor:
    """Bytes [N, H, W, C] as float32 [N, C, H, W] in [-1, 1] (x / 127.5 - 1), as training sees them."""
    x_NCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)))
    return x_NCHW.float().div(127.5).sub(1.0)
