"""A free probability for each level of a grey image."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.core.family import EIGHT_BIT
from sfumato.core.rng import Rng
from sfumato.families.autoregressive.drawing.draws import draw
from sfumato.families.autoregressive.outputs import OutputConfig, Predict
from sfumato.families.autoregressive.sampling import SamplingConfig
from sfumato.layers.discretized_logistic import to_level


class CategoricalConfig(OutputConfig):
    """A free probability for each level; grey images only."""

    kind: Literal["categorical"] = Field("categorical", description="Selects this distribution.")
    levels: int = Field(
        256, ge=2, le=256, description="Levels that 0..255 is divided into; 2 is black and white."
    )
    binarization: Literal["dynamic", "threshold"] = Field(
        "dynamic",
        description="With 2 levels, what makes a grey pixel white: chance in proportion to its value, drawn "
        "each time (Salakhutdinov & Murray 2008), or being above the middle.",
    )

    @model_validator(mode="after")
    def _binarization_has_effect(self) -> Self:
        if self.levels != 2 and self.binarization != "dynamic":
            raise ValueError(
                f"binarization: {self.binarization} has no effect on levels={self.levels}; leave it out, or "
                "set levels=2"
            )
        return self

    @classmethod
    def tiny(cls) -> Self:
        """16 levels."""
        return cls(levels=16)

    def size(self, channels: int) -> int:
        """One logit per level."""
        return self.levels

    def nats(self, predict: Predict, image_BCHW: Tensor, rng: Rng) -> Tensor:
        """Of the image in these levels."""
        level_B1HW = self.to_levels(image_BCHW, rng)
        logits_BLHW = predict(to_level(level_B1HW.float(), self.levels))
        return F.cross_entropy(logits_BLHW, level_B1HW[:, 0], reduction="none").flatten(1).sum(dim=1)

    def draw(
        self, parameters_NS11: Tensor, uniform_NU11: Tensor, channels: int, options: SamplingConfig
    ) -> Tensor:
        """By inversion."""
        level_N = draw(
            parameters_NS11[:, :, 0, 0],
            uniform_NU11[:, 0, 0, 0],
            **options.limits,
        )
        return to_level(level_N.float(), self.levels)[:, None, None, None]

    @property
    def likelihood_of(self) -> str:
        """Of the levels."""
        if self.levels == 256:
            return EIGHT_BIT
        if self.levels == 2 and self.binarization == "dynamic":
            return "the image made black and white by chance in proportion to its values"
        return f"the image in {self.levels} levels"

    def problems(self, data: DataSpec) -> list[str]:
        """Colours."""
        if data.channels == 1:
            return []
        problem = f"{self.kind} takes grey images, the data has {data.channels} channels"
        return [f"model.network.output: {problem}; use model.network.output.kind=logistic"]

    def to_levels(self, image_BCHW: Tensor, rng: Rng) -> Tensor:
        """The level of each pixel, int64 in [0, levels): equal parts of 0..255, or a binarisation."""
        if self.levels == 2 and self.binarization == "dynamic":
            # Evaluation noise is drawn on the CPU, whatever the device of the images.
            uniform_BCHW = rng.uniform(*image_BCHW.shape[1:]).to(image_BCHW.device)
            return (uniform_BCHW < (image_BCHW + 1) / 2).long()
        byte = ((image_BCHW + 1) * 127.5).round().long()
        return byte * self.levels // 256


COMPONENT = CategoricalConfig
