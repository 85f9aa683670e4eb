"""The minimax game (Goodfellow et al. 2014, eq. 1): the generator minimises what the discriminator maximises.

L_D = softplus(-s) + softplus(f),    L_G = -softplus(f)

L_G is flat where the discriminator is sure, so the generator learns little at first; `nonsaturating` is the
paper's remedy.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.families.gan.cross_entropy import CrossEntropy


class Minimax(CrossEntropy):
    """See the top of the file."""

    kind: Literal["minimax"] = Field("minimax", description="Selects this loss.")

    def generator(self, f_B: Tensor) -> Tensor:
        """L_G."""
        return -F.softplus(f_B)


COMPONENT = Minimax
