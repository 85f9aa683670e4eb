"""Black or white pixels."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.rng import Rng
from sfumato.families.vae.likelihoods import Likelihood, LikelihoodConfig


class Bernoulli(Likelihood):
    """The decoder gives the logit of every value."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.outputs = self.uniforms = channels

    def each(self, x_BCHW: Tensor, output_BOHW: Tensor) -> Tensor:
        """Of targets that are -1 or 1."""
        return -F.binary_cross_entropy_with_logits(output_BOHW, (x_BCHW + 1) / 2, reduction="none")

    def mean(self, output_BOHW: Tensor) -> Tensor:
        """2 p - 1."""
        return 2 * torch.sigmoid(output_BOHW) - 1

    def draw(self, output_BOHW: Tensor, uniform_BUHW: Tensor) -> Tensor:
        """-1 or 1."""
        return (uniform_BUHW < torch.sigmoid(output_BOHW)).float() * 2 - 1


class BernoulliConfig(LikelihoodConfig):
    """Black or white pixels."""

    kind: Literal["bernoulli"] = Field("bernoulli", description="Selects this likelihood.")
    binarization: Literal["dynamic", "threshold"] = Field(
        "dynamic",
        description="What makes a grey pixel white: chance in proportion to its value, drawn each time "
        "(Salakhutdinov & Murray 2008), or being above the middle.",
    )

    def build(self, channels: int) -> Bernoulli:
        """Without parameters."""
        return Bernoulli(channels)

    def target(self, image_BCHW: Tensor, rng: Rng) -> Tensor:
        """The image's binarisation."""
        if self.binarization == "threshold":
            white = image_BCHW > 0
        else:
            # Evaluation noise is drawn on the CPU, whatever the device of the images.
            white = rng.uniform(*image_BCHW.shape[1:]).to(image_BCHW.device) < (image_BCHW + 1) / 2
        return white.to(image_BCHW.dtype) * 2 - 1

    @property
    def target_is(self) -> str:
        """A description of the binarisation."""
        how = "at the middle" if self.binarization == "threshold" else "by chance in proportion to its values"
        return f"the image made black and white {how}"


COMPONENT = BernoulliConfig
