"""CycleGAN: translation between two domains without pairs (Zhu, Park, Isola, Efros 2017, sec. 3).

Every row belongs to one domain: classes in `second` to the second, all others to the first. So both sets are
read in one deterministic order, that of a data set with classes. For a row x, T translates to the other
domain and S to its own; D_T and D_S are their discriminators:

    L_D = ((D_S(x) - 1)^2 + D_T(T(x))^2) / 2
    L_G = (D_T(T(x)) - 1)^2 + lambda |S(T(x)) - x|_1 + lambda iota |S(x) - x|_1

so that the mean over rows of both domains is the paper's loss, up to a factor. Both translators are one
network to its optimizer, and both discriminators another.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.family import LossOut, Nets
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.state import State
from sfumato.families.translation.generators import GeneratorConfig
from sfumato.families.translation.image_pool import ImagePool
from sfumato.families.translation.objectives import Objective, SamplingConfig, mean_of_rows
from sfumato.families.translation.patches import PatchConfig, PatchDiscriminator


class CycleGan(Objective):
    """See the top of the file."""

    kind: Literal["cyclegan"] = Field("cyclegan", description="Selects CycleGAN.")
    second: tuple[int, ...] = Field(
        (1,),
        min_length=1,
        description="The classes that make up the second domain; all others are the first.",
    )
    cycle: float = Field(10.0, ge=0, description="lambda, the factor of the way there and back.")
    identity: float = Field(
        0.5,
        ge=0,
        description="iota: how much leaving images of the target domain alone counts, beside `cycle`.",
    )

    pool: int = Field(
        0,
        ge=0,
        exclude_if=lambda value: not value,
        description="Earlier translated images of each domain that its discriminator is shown half of the "
        "time; 50 in the paper. They are state: that many images more in every checkpoint, and summed over "
        "the workers in every step. 0 leaves it out.",
    )

    def source(self, data: DataSpec) -> Condition:
        """The image itself."""
        return Condition("source", "image", "image", data.shape, required=True)

    def build_generator(self, generator: GeneratorConfig, data: DataSpec) -> nn.Module:
        """Two translators."""
        return Translators(*(generator.build(data.channels, data.channels) for _ in range(2)))

    def build_discriminator(self, patches: PatchConfig, data: DataSpec) -> nn.Module:
        """Two, one for each domain."""
        return Judges(*(PatchDiscriminator(patches, data.channels, gains=False) for _ in range(2)))

    def first_state(self, data: DataSpec) -> State:
        """The pool, if there is one."""
        return ImagePool(self.pool, data).first if self.pool else {}

    def advance(self, state: State, sums: State, data: DataSpec) -> State:
        """The pool after a step."""
        return ImagePool(self.pool, data).advance(state, sums) if self.pool else state

    def discriminate(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """See the top of the file."""
        image_BCHW, second_B = batch["image"], self._second(batch)
        with torch.no_grad():
            fake_BCHW = nets["generator"](image_BCHW, second_B, there_alone=True).there_BCHW
        sums: dict[str, Tensor] = {}
        if self.pool:
            shape = DataSpec(*image_BCHW.shape[1:])
            fake_BCHW, sums = ImagePool(self.pool, shape).swap(fake_BCHW, second_B, progress.state, rng)
        own_BHW, other_BHW = nets["discriminator"](image_BCHW, fake_BCHW, second_B)
        loss_B = (mean_of_rows((own_BHW - 1).square()) + mean_of_rows(other_BHW.square())) / 2
        scores = {"real_score": mean_of_rows(own_BHW), "fake_score": mean_of_rows(other_BHW)}
        return LossOut(loss_B, {name: value.detach() for name, value in scores.items()}, sums)

    def generate(self, nets: Nets, batch: Batch) -> LossOut:
        """See the top of the file."""
        image_BCHW, second_B = batch["image"], self._second(batch)
        made: Translated = nets["generator"](image_BCHW, second_B)
        _, score_BHW = nets["discriminator"](image_BCHW, made.there_BCHW, second_B)
        cycle_B = mean_of_rows((made.back_BCHW - image_BCHW).abs())
        identity_B = mean_of_rows((made.same_BCHW - image_BCHW).abs())
        loss_B = mean_of_rows((score_BHW - 1).square())
        loss_B = loss_B + self.cycle * (cycle_B + self.identity * identity_B)
        return LossOut(loss_B, {"cycle": cycle_B.detach(), "identity": identity_B.detach()})

    def translated(self, generator: nn.Module, source_BCHW: Tensor, options: SamplingConfig) -> Tensor:
        """By the translator to the domain that the options name."""
        from_second = torch.full((len(source_BCHW),), options.to == "first", device=source_BCHW.device)
        made: Translated = generator(source_BCHW, from_second, there_alone=True)
        return made.there_BCHW

    def problems(self, data: DataSpec, options: SamplingConfig) -> list[str]:
        """Data that does not say which domain an image belongs to."""
        classes = data.num_classes
        if not classes:
            problem = (
                "model.objective.kind: cyclegan takes the domain of an image from its class, and the data "
                "has no classes; pack a folder with one subfolder for each domain, and train with "
                "data.balance=class"
            )
            return [problem]
        unknown = [label for label in self.second if not 0 <= label < classes]
        if unknown:
            return [f"model.objective.second: {unknown[0]} is not a class; the data has 0 to {classes - 1}"]
        if len(set(self.second)) == classes:
            return ["model.objective.second: it holds all classes, and leaves none for the first domain"]
        return []

    def _second(self, batch: Batch) -> Tensor:
        label_B = batch["label"]
        second_B = torch.zeros_like(label_B, dtype=torch.bool)
        for label in self.second:
            second_B = second_B | (label_B == label)
        return second_B


class Translated(NamedTuple):
    """Each image in the other domain, from there back in its own, and translated to where it is."""

    there_BCHW: Tensor
    back_BCHW: Tensor
    same_BCHW: Tensor


class Translators(nn.Module):
    """One translator into each domain. Both see all rows, so that shapes do not depend on the data."""

    def __init__(self, to_first: nn.Module, to_second: nn.Module) -> None:
        super().__init__()
        self.to_first, self.to_second = to_first, to_second

    def forward(self, x_BCHW: Tensor, second_B: Tensor, *, there_alone: bool = False) -> Translated:
        """`second_B` says which images are of the second domain; `there_alone` leaves the rest as given."""
        second_B111 = second_B[:, None, None, None]
        first_BCHW, other_BCHW = self.to_first(x_BCHW), self.to_second(x_BCHW)
        there_BCHW = torch.where(second_B111, first_BCHW, other_BCHW)
        if there_alone:
            return Translated(there_BCHW, x_BCHW, x_BCHW)
        same_BCHW = torch.where(second_B111, other_BCHW, first_BCHW)
        back_BCHW = torch.where(second_B111, self.to_second(there_BCHW), self.to_first(there_BCHW))
        return Translated(there_BCHW, back_BCHW, same_BCHW)


class Judges(nn.Module):
    """One discriminator for each domain."""

    def __init__(self, of_first: nn.Module, of_second: nn.Module) -> None:
        super().__init__()
        self.of_first, self.of_second = of_first, of_second

    def forward(self, own_BCHW: Tensor, other_BCHW: Tensor, second_B: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, h, w] of images of the rows' own domain, and of images of the other."""
        second_B111 = second_B[:, None, None, None]
        first_BHW = self.of_first(torch.where(second_B111, other_BCHW, own_BCHW))
        then_BHW = self.of_second(torch.where(second_B111, own_BCHW, other_BCHW))
        second_B11 = second_B111[..., 0]
        own_BHW = torch.where(second_B11, then_BHW, first_BHW)
        return own_BHW, torch.where(second_B11, first_BHW, then_BHW)


COMPONENT = CycleGan
