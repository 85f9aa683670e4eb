"""The games, a row a number. With s = D(x) for a real and f = D(G(z)) for a generated image:

nonsaturating   L_D = softplus(-s) + softplus(f)      L_G = softplus(-f)      Goodfellow et al. 2014, sec. 3
hinge           L_D = relu(1 - s) + relu(1 + f)       L_G = -f                Lim & Ye 2017
wasserstein     L_D = f - s                           L_G = -f                Arjovsky et al. 2017, eq. 3
least_squares   L_D = (s - 1)^2 / 2 + f^2 / 2         L_G = (f - 1)^2 / 2     Mao et al. 2017, eq. 9
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Game:
    """Both players' losses of scores [B], each [B]."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    """Of the scores of real and of generated images."""
    generator: Callable[[Tensor], Tensor]
    """Of the scores of generated images."""
    sees_bias: bool = True
    """Whether a constant added to all scores changes the discriminator's loss."""


GAMES = {
    "nonsaturating": Game(lambda s, f: F.softplus(-s) + F.softplus(f), lambda f: F.softplus(-f)),
    "hinge": Game(lambda s, f: F.relu(1 - s) + F.relu(1 + f), lambda f: -f),
    "wasserstein": Game(lambda s, f: f - s, lambda f: -f, sees_bias=False),
    "least_squares": Game(lambda s, f: (s - 1).square() / 2 + f.square() / 2, lambda f: (f - 1).square() / 2),
}
