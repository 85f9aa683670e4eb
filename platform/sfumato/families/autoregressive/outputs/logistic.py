"""A mixture of discretised logistics over 256 levels (Salimans et al. 2017)."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from sfumato.core.rng import Rng
from sfumato.families.autoregressive.outputs import OutputConfig, Predict
from sfumato.families.autoregressive.sampling import SamplingConfig
from sfumato.layers.discretized_logistic import Mixture


class LogisticConfig(OutputConfig):
    """A mixture of discretised logistics over 256 levels (Salimans et al. 2017)."""

    takes_temperature: ClassVar[bool] = False
    kind: Literal["logistic"] = Field("logistic", description="Selects this distribution.")
    components: int = Field(5, ge=1, description="Components of the mixture.")

    @classmethod
    def tiny(cls) -> Self:
        """Two components."""
        return cls(components=2)

    def size(self, channels: int) -> int:
        """See `Mixture`."""
        return Mixture.size(channels, self.components)

    def nats(self, predict: Predict, image_BCHW: Tensor, rng: Rng) -> Tensor:
        """Of the 8-bit image."""
        mixture = Mixture(predict(image_BCHW), image_BCHW.shape[1], self.components)
        return -mixture.log_prob(image_BCHW).flatten(1).sum(dim=1)

    def draw(
        self, parameters_NS11: Tensor, uniform_NU11: Tensor, channels: int, options: SamplingConfig
    ) -> Tensor:
        """A component, then its value."""
        return Mixture(parameters_NS11, channels, self.components).sample(uniform_NU11)


COMPONENT = LogisticConfig
