"""The zero-centred gradient penalty between real and generated images (Thanh-Tung, Tran, Venkatesh 2019, eq.
9).

(gamma / 2) |grad D(x^)|^2,  x^ = u x + (1 - u) G(z),  u ~ U[0, 1): see `slopes.py`. The one-centred penalty
of WGAN-GP is `objective.gradient_penalty`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sfumato.families.gan.penalties import Place
from sfumato.families.gan.slopes import SlopePenalty


class ZeroCentred(SlopePenalty):
    """See the top of the file."""

    place: ClassVar[Place] = "mixed"
    kind: Literal["zero_centred"] = Field("zero_centred", description="Selects this penalty.")


COMPONENT = ZeroCentred
