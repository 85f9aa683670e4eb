"""Matrices of random changes, one per image, and their application to images.

Geometric matrices [B, 3, 3] map a pixel of the result to the point of the image that it shows, in pixels from
the centre. Colour matrices [B, 4, 4] map (red, green, blue, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GREY = (3**-0.5, 3**-0.5, 3**-0.5)
"""The direction of brightness among colours."""


def identity(like_B: Tensor, size: int) -> Tensor:
    """The identity for each row, [B, size, size]."""
    return torch.eye(size, device=like_B.device).expand(len(like_B), -1, -1)


def scaling(x_B: Tensor, y_B: Tensor) -> Tensor:
    """By a factor along each axis."""
    return torch.diag_embed(torch.stack([x_B, y_B, torch.ones_like(x_B)], 1))


def rotation(angle_B: Tensor) -> Tensor:
    """By an angle, in radians."""
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    nil_B, one_B = torch.zeros_like(angle_B), torch.ones_like(angle_B)
    rows = [cos_B, -sin_B, nil_B, sin_B, cos_B, nil_B, nil_B, nil_B, one_B]
    return torch.stack(rows, 1).view(-1, 3, 3)


def translation(x_B: Tensor, y_B: Tensor) -> Tensor:
    """By so many pixels."""
    matrix_B33 = identity(x_B, 3).clone()
    matrix_B33[:, 0, 2], matrix_B33[:, 1, 2] = x_B, y_B
    return matrix_B33


def warped(x_BCHW: Tensor, matrix_B33: Tensor) -> Tensor:
    """The images as these geometric matrices show them: bilinear between pixels, mirrored beyond the border.

    Rows whose matrix is the identity stay exactly as they are.
    """
    _, _, height, width = x_BCHW.shape
    size_3 = torch.tensor([width / 2, height / 2, 1.0], device=x_BCHW.device)
    theta_B23 = (matrix_B33 * size_3 / size_3[:, None])[:, :2]
    grid_BHW2 = F.affine_grid(theta_B23, list(x_BCHW.shape), align_corners=False)
    moved_BCHW = F.grid_sample(
        x_BCHW.float(), grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    still_B = (matrix_B33 == identity(matrix_B33, 3)).flatten(1).all(1)
    return torch.where(still_B[:, None, None, None], x_BCHW.float(), moved_BCHW)


def colour_scaling(factor_B: Tensor) -> Tensor:
    """All colours by a factor."""
    one_B = torch.ones_like(factor_B)
    return torch.diag_embed(torch.stack([factor_B, factor_B, factor_B, one_B], 1))


def colour_shift(by_B: Tensor) -> Tensor:
    """All colours by a number."""
    matrix_B44 = identity(by_B, 4).clone()
    matrix_B44[:, :3, 3] = by_B[:, None]
    return matrix_B44


def grey_flip(flip_B: Tensor) -> Tensor:
    """Brightness to its negative where `flip_B` is 1: a reflection, I - 2 v v'."""
    return identity(flip_B, 4) - 2 * flip_B[:, None, None] * _grey_square(flip_B)


def saturation(factor_B: Tensor) -> Tensor:
    """What is not grey by a factor: v v' + (I - v v') s."""
    square_44 = _grey_square(factor_B)
    rest_44 = torch.eye(4, device=factor_B.device) - square_44
    rest_44[3, 3] = 0
    matrix_B44 = square_44 + rest_44 * factor_B[:, None, None]
    last_44 = torch.zeros(4, 4, device=factor_B.device)
    last_44[3, 3] = 1
    return matrix_B44 + last_44


def hue(angle_B: Tensor) -> Tensor:
    """A rotation of the colours about grey (Rodrigues' formula)."""
    v = GREY[0]
    cross_33 = torch.tensor([[0, -v, v], [v, 0, -v], [-v, v, 0]], device=angle_B.device)
    eye_33 = torch.eye(3, device=angle_B.device)
    square_33 = _grey_square(angle_B)[:3, :3]
    cos_B11, sin_B11 = angle_B.cos()[:, None, None], angle_B.sin()[:, None, None]
    matrix_B44 = identity(angle_B, 4).clone()
    matrix_B44[:, :3, :3] = cos_B11 * eye_33 + sin_B11 * cross_33 + (1 - cos_B11) * square_33
    return matrix_B44


def recoloured(x_BCHW: Tensor, matrix_B44: Tensor) -> Tensor:
    """The images with their colours mapped; an image of one channel takes the mean over colours."""
    if x_BCHW.shape[1] == 3:
        mixed_BCHW = torch.einsum("bij,bjhw->bihw", matrix_B44[:, :3, :3], x_BCHW.float())
        return mixed_BCHW + matrix_B44[:, :3, 3, None, None]
    row_B4 = matrix_B44[:, :3].mean(1)
    factor_B111 = row_B4[:, :3].sum(1)[:, None, None, None]
    return x_BCHW.float() * factor_B111 + row_B4[:, 3, None, None, None]


def _grey_square(like_B: Tensor) -> Tensor:
    v_4 = torch.tensor([*GREY, 0.0], device=like_B.device)
    return v_4[:, None] * v_4
