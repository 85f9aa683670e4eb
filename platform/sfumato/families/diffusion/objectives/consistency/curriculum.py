"""How finely consistency training discretises noise, and how slowly its teacher follows, against images."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from sfumato.core.config import Config
from sfumato.core.progress import Progress


class Curriculum(Config):
    """The number of noise levels N(k), as a function of the share k/K of all images that has been seen.

    doubling (Song & Dhariwal 2024, eq. 9): N(k) = min(s0 2^floor(k/K'), s1) + 1,
    K' = floor(K / (log2 floor(s1/s0) + 1)).
    root (Song et al. 2023, app. C): N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1.
    """

    growth: Literal["doubling", "root"] = Field(
        "doubling",
        description="How N grows: doubled at equal intervals (Song & Dhariwal 2024), or like a square root "
        "(Song et al. 2023).",
    )
    first: int = Field(10, ge=2, description="s0, the number of intervals at the start.")
    last: int = Field(1280, ge=2, description="s1, the number of intervals at the end.")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last: {self.last} is below first={self.first}; give at least as many")
        return self

    def levels(self, progress: Progress) -> int:
        """N(k) for the step that starts at `progress`, counted as noise levels."""
        s0, s1 = self.first, self.last
        done = min(1.0, progress.images / max(1, progress.total_images))
        if self.growth == "root":
            return math.ceil(math.sqrt(done * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
        stage = int(progress.total_images / (math.log2(s1 // s0) + 1))
        return int(min(s0 * 2 ** (progress.images // max(1, stage)), s1)) + 1

    def teacher_decay(self, mu: float, progress: Progress) -> float:
        """mu(k) = exp(s0 ln mu0 / N(k)) (Song et al. 2023, app. C); 0 for mu0 = 0, which is no averaging."""
        return math.exp(self.first * math.log(mu) / self.levels(progress)) if mu else 0.0
