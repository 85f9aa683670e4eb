"""Pix2Pix: translation learned from pairs (Isola, Zhu, Zhou, Efros 2017, eq. 4).

    L_D = (softplus(-D(x, y)) + softplus(D(x, G(x)))) / 2        the mean over patches
    L_G = softplus(-D(x, G(x))) + lambda |y - G(x)|_1            the mean over patches, and over values

x is the source, a column of its own, and y the image. The discriminator sees both, one above the other.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.family import LossOut, Nets
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.families.translation.generators import GeneratorConfig
from sfumato.families.translation.objectives import Objective, SamplingConfig, mean_of_rows
from sfumato.families.translation.patches import PatchConfig, PatchDiscriminator


class Pix2Pix(Objective):
    """See the top of the file."""

    kind: Literal["pix2pix"] = Field("pix2pix", description="Selects Pix2Pix.")
    column: str = Field("source", description="The column that holds the image to translate.")
    l1: float = Field(100.0, ge=0, description="lambda, the factor of the distance to the true image.")

    def source(self, data: DataSpec) -> Condition:
        """The column."""
        column = data.columns.get(self.column)
        shape = data.shape if column is None else column.shape
        return Condition("source", self.column, "image", shape, required=True)

    def build_generator(self, generator: GeneratorConfig, data: DataSpec) -> nn.Module:
        """One translator."""
        return generator.build(self.source(data).shape[0], data.channels)

    def build_discriminator(self, patches: PatchConfig, data: DataSpec) -> nn.Module:
        """One, of both images."""
        return PatchDiscriminator(patches, self.source(data).shape[0] + data.channels, gains=True)

    def discriminate(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """See the top of the file."""
        source_BCHW, image_BCHW = batch[self.column], batch["image"]
        with torch.no_grad():
            fake_BCHW = nets["generator"](source_BCHW)
        pairs_BCHW = torch.cat(
            [torch.cat([source_BCHW, image_BCHW], 1), torch.cat([source_BCHW, fake_BCHW], 1)]
        )
        real_BHW, made_BHW = nets["discriminator"](pairs_BCHW).chunk(2)
        loss_B = (mean_of_rows(F.softplus(-real_BHW)) + mean_of_rows(F.softplus(made_BHW))) / 2
        scores = {"real_score": mean_of_rows(real_BHW), "fake_score": mean_of_rows(made_BHW)}
        return LossOut(loss_B, {name: value.detach() for name, value in scores.items()})

    def generate(self, nets: Nets, batch: Batch) -> LossOut:
        """See the top of the file."""
        source_BCHW = batch[self.column]
        fake_BCHW = nets["generator"](source_BCHW)
        score_BHW = nets["discriminator"](torch.cat([source_BCHW, fake_BCHW], 1))
        distance_B = mean_of_rows((fake_BCHW - batch["image"]).abs())
        loss_B = mean_of_rows(F.softplus(-score_BHW)) + self.l1 * distance_B
        return LossOut(loss_B, {"l1": distance_B.detach()})

    def translated(self, generator: nn.Module, source_BCHW: Tensor, options: SamplingConfig) -> Tensor:
        """By the one translator."""
        image_BCHW: Tensor = generator(source_BCHW)
        return image_BCHW

    def problems(self, data: DataSpec, options: SamplingConfig) -> list[str]:
        """Data without pairs, or pairs of different sizes."""
        column, found = data.columns.get(self.column), []
        if column is None or column.kind != "image":
            images = [name for name, each in data.extra.items() if each.kind == "image"]
            fix = (
                f"set model.objective.column={images[0]}"
                if images
                else f"pack pairs with a column {self.column!r} and name it in data.columns, or use "
                "model.objective.kind=cyclegan, which needs none"
            )
            found.append(f"model.objective.column: the data has no column of images {self.column!r}; {fix}")
        elif column.shape[1:] != data.shape[1:]:
            sizes = ["x".join(map(str, shape[1:])) for shape in (column.shape, data.shape)]
            found.append(
                f"model.objective.column: {self.column!r} has images of {sizes[0]}, but the data {sizes[1]}; "
                "pack both with one size"
            )
        if options.to != "second":
            found.append("model.sampling.to: pix2pix translates one way; leave it out")
        return found


COMPONENT = Pix2Pix
