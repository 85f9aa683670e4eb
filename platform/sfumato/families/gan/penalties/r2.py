"""R2, the zero-centred gradient penalty on generated images (Mescheder et al. 2018, eq. 10): see
`slopes.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sfumato.families.gan.penalties import Place
from sfumato.families.gan.slopes import SlopePenalty


class R2(SlopePenalty):
    """(gamma / 2) R2."""

    place: ClassVar[Place] = "generated"
    kind: Literal["r2"] = Field("r2", description="Selects R2.")


COMPONENT = R2
