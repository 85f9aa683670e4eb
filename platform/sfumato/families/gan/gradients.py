"""Penalties on the discriminator's gradient with respect to the image, one number per row.

    gradient penalty   (|grad D(x^)| - 1)^2,  x^ = u x + (1 - u) G(z),  u ~ U[0, 1)
                       Gulrajani et al. 2017, eq. 3
    R1                 |grad D(x)|^2 on real images      Mescheder et al. 2018, eq. 9

The finite difference ((D(x + h v) - D(x - h v)) / 2h)^2 with v ~ N(0, I) needs no second derivative. Its
expectation over v is R1 up to O(h^2), since E (g.v)^2 = |g|^2; its variance is 2 |g|^4. It is computed in
float32 even under autocast, since bfloat16 rounds a score by more than h changes it; FSDP with bf16
parameters casts its inputs nevertheless.

Both take the scores of some points: `exact_points` and `difference_points` choose them, and `exact_square`
and `difference_square` compute |grad D|^2 from their scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sfumato.core.rng import Rng


def gradient_norm(score_B: Tensor, x_BCHW: Tensor) -> Tensor:
    """|grad D| [B], differentiable. A row's score must depend on its own image alone."""
    norm_B: Tensor = _gradient(score_B, x_BCHW).flatten(1).norm(dim=1)
    return norm_B


def mixed(real_BCHW: Tensor, fake_BCHW: Tensor, rng: Rng) -> Tensor:
    """A random point between each real and generated image, which wants a gradient."""
    u_B111 = rng.uniform(1, 1, 1)
    return (u_B111 * real_BCHW + (1 - u_B111) * fake_BCHW).detach().requires_grad_()


def exact_points(x_BCHW: Tensor) -> list[Tensor]:
    """The images themselves, which want a gradient."""
    return [x_BCHW.detach().requires_grad_()]


def exact_square(scores: Sequence[Tensor], points: Sequence[Tensor]) -> Tensor:
    """|grad D|^2 [B], differentiable."""
    return _gradient(scores[0], points[0]).flatten(1).square().sum(1)


def difference_points(x_BCHW: Tensor, rng: Rng, *, step: float) -> list[Tensor]:
    """A point on either side of each image, along one random direction per row."""
    x_BCHW = x_BCHW.float()
    shift_BCHW = step * rng.normal(*x_BCHW.shape[1:])
    return [x_BCHW + shift_BCHW, x_BCHW - shift_BCHW]


def difference_square(scores: Sequence[Tensor], *, step: float) -> Tensor:
    """The estimate of |grad D|^2 [B]."""
    return ((scores[0] - scores[1]) / (2 * step)).square()


def r1_exact(discriminator: nn.Module, real_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """R1 [B] and the scores [B], by differentiating the gradient."""
    points = exact_points(real_BCHW)
    scores = discriminator(points, [label_B])
    return exact_square(scores, points), scores[0]


def r1_finite_difference(
    discriminator: nn.Module, real_BCHW: Tensor, label_B: Tensor, rng: Rng, *, step: float
) -> tuple[Tensor, Tensor]:
    """An estimate of R1 [B] along one random direction per row, and a score [B] near that of the image."""
    points = difference_points(real_BCHW, rng, step=step)
    with torch.autocast(real_BCHW.device.type, enabled=False):
        scores = discriminator(points, [label_B, label_B])
    return difference_square(scores, step=step), (scores[0] + scores[1]) / 2


def _gradient(score_B: Tensor, x_BCHW: Tensor) -> Tensor:
    (gradient_BCHW,) = torch.autograd.grad(score_B.sum(), x_BCHW, create_graph=True)
    return gradient_BCHW.float()
