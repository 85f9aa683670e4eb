"""A mixture of discretised logistics with coupled channels (PixelCNN++; Salimans et al. 2017)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field
from torch import Tensor

from sfumato.families.vae.likelihoods import Likelihood, LikelihoodConfig
from sfumato.layers.discretized_logistic import Mixture


class LogisticMixture(Likelihood):
    """The decoder predicts the weights, means, scales and couplings of every pixel."""

    def __init__(self, channels: int, components: int) -> None:
        super().__init__()
        self._channels, self._components = channels, components
        self.outputs = Mixture.size(channels, components)
        self.uniforms = channels + 1

    def each(self, x_BCHW: Tensor, output_BOHW: Tensor) -> Tensor:
        """Of 8-bit images; channels are not independent, so [B, H, W]."""
        return self._of(output_BOHW).log_prob(x_BCHW)

    def mean(self, output_BOHW: Tensor) -> Tensor:
        """The likeliest component's mean, its channels taken at their means."""
        return self._of(output_BOHW).center()

    def draw(self, output_BOHW: Tensor, uniform_BUHW: Tensor) -> Tensor:
        """A component, then its values one after the other."""
        return self._of(output_BOHW).sample(uniform_BUHW)

    def _of(self, output_BOHW: Tensor) -> Mixture:
        return Mixture(output_BOHW, self._channels, self._components)


class LogisticMixtureConfig(LikelihoodConfig):
    """A mixture of discretised logistics with coupled channels (Salimans et al. 2017)."""

    kind: Literal["mixture"] = Field("mixture", description="Selects this likelihood.")
    components: int = Field(10, ge=1, description="Logistics of the mixture.")

    @classmethod
    def tiny(cls) -> Self:
        """Two logistics."""
        return cls(components=2)

    def build(self, channels: int) -> LogisticMixture:
        """Without parameters."""
        return LogisticMixture(channels, self.components)


COMPONENT = LogisticMixtureConfig
