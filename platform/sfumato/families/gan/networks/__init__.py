"""The pairs of networks, and their interface to the losses.

generator       latent [B, D], class [B]  ->  image [B, C, H, W]; sampling clamps it to [-1, 1]
discriminator   groups of images, their classes  ->  scores [B] of each group, any real number

A file here is a pair: its configuration, a `NetworkConfig`, and the generator and discriminator that it
builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.state import State
from sfumato.families.gan.layers.blocks import Score
from sfumato.families.gan.sampling import SamplingConfig


class Generated(NamedTuple):
    """All that a generator gives: images, the styles that made them, a penalty on its own weights."""

    image_BCHW: Tensor
    styles_BLD: Tensor | None = None
    penalty: Tensor | None = None
    """A scalar, before its factor."""
    measured: Tensor | None = None
    """What the networks' state follows [B, K]."""


class Judged(NamedTuple):
    """All that a discriminator gives for a group of images."""

    score_B: Tensor
    features_BF: Tensor
    log_class_B: Tensor | None = None
    """The log-probability of the image's class, by an auxiliary classifier."""


class GeneratorNet(nn.Module, ABC):
    """Images from latents. Without classes, labels are zero.

    `inputs` are those that its configuration chooses. With `details=True`, which only generators of networks
    with `styles`, `penalised` or `measures` are asked for, the result is `Generated`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention: nn.ModuleDict | None = None
        """By the number of a stage, what attends to texts after it; see `attend`."""

    @abstractmethod
    def forward(self, z_BD: Tensor, label_B: Tensor, **inputs: Any) -> Any: ...

    def attend(self, layers: Mapping[int, nn.Module]) -> None:
        """Let stages attend to the texts, which `inputs` then hold as `text`."""
        self.attention = nn.ModuleDict({str(stage): layer for stage, layer in layers.items()})

    def attended(self, stage: int, x_BCHW: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The map after a stage, which has attended to the texts if it is one that does."""
        if self.attention is None or str(stage) not in self.attention:
            return x_BCHW
        out_BCHW: Tensor = self.attention[str(stage)](x_BCHW, inputs["text"])
        return out_BCHW


class DiscriminatorNet(nn.Module, ABC):
    """Scores of images, high for real ones.

    A loss calls it once with all that it wants scored, since a network that is spread over ranks should
    not be called twice in one pass. With `mixes_rows` (batch normalisation) every group is scored by its
    own statistics, so that real and generated images do not tell one another apart.
    """

    mixes_rows = False

    def forward(
        self, groups: Sequence[Tensor], labels: Sequence[Tensor], *, details: bool = False, **inputs: Any
    ) -> list[Any]:
        """One tensor of scores [B] for each group of images [B, C, H, W] with labels [B]; with `details`, one
        `Judged`."""
        call = self.judge if details else self.score
        # In one batch, a gradient for one group would cost as much as one for all of them.
        if self.mixes_rows or len({group.requires_grad for group in groups}) > 1:
            return [call(x_BCHW, label_B, **inputs) for x_BCHW, label_B in zip(groups, labels, strict=True)]
        found = call(torch.cat(list(groups)), torch.cat(list(labels)), **inputs)
        rows = [len(group) for group in groups]
        if isinstance(found, Tensor):
            return list(torch.split(found, rows))
        parts = [[None] * len(rows) if part is None else torch.split(part, rows) for part in found]
        return [Judged(*group) for group in zip(*parts, strict=True)]

    @abstractmethod
    def score(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        """Scores [B] float32."""

    def judge(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Judged:
        """Scores, features and classes; for networks that declare `judges`."""
        raise TypeError(f"{type(self).__name__} gives scores alone: do not declare judges")


class FeatureDiscriminator(DiscriminatorNet):
    """A discriminator of features [B, F], which its layer `output` scores."""

    output: Score

    @abstractmethod
    def features(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        """Features [B, F]."""

    def score(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        """See the base."""
        score_B: Tensor = self.output(self.features(x_BCHW, label_B, **inputs), label_B)
        return score_B

    def judge(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Judged:
        """See the base."""
        phi_BF = self.features(x_BCHW, label_B, **inputs)
        score_B, log_class_B = self.output.judge(phi_BF, label_B)
        return Judged(score_B, phi_BF, log_class_B)


class NetworkConfig(Component, ABC):
    """Kind and size of both networks, which it builds, and what they take beside latents and images."""

    styles: ClassVar[bool] = False
    """Whether the generator maps latents to styles first: path length, truncation of styles."""
    judges: ClassVar[bool] = False
    """Whether the discriminator also gives features, and classes with an auxiliary classifier."""
    noisy: ClassVar[bool] = False
    """Whether the generator's layers get noise."""
    places: ClassVar[bool] = False
    """Whether the generator takes `placed`, which moves and turns what an image shows."""
    measures: ClassVar[bool] = False
    """Whether a state follows what the generator measures in training; see `first_state`."""

    @abstractmethod
    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> GeneratorNet:
        """A generator with weights from torch's global generator; `classes` 0 makes it unconditional."""

    @abstractmethod
    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> DiscriminatorNet:
        """A discriminator; `bias` says whether its score has one."""

    @property
    def norms(self) -> tuple[str, str]:
        """How generator and discriminator normalise.

        `batch` lets the rows of a micro-batch influence one another; `spectral` bounds a discriminator.
        """
        return "none", "none"

    @property
    def compares_rows(self) -> bool:
        """Whether the discriminator compares the images of a micro-batch, other than by batch
        normalisation."""
        return False

    @property
    def group(self) -> int:
        """How many consecutive images of a micro-batch it compares as a group; 1 for all of them or none."""
        return 1

    @property
    def penalised(self) -> float:
        """The factor of the generator's penalty on its own weights; 0 without one."""
        return 0.0

    @property
    def classifies(self) -> bool:
        """Whether the discriminator has an auxiliary classifier, if there are classes."""
        return False

    @property
    def stages(self) -> tuple[int, ...]:
        """Channels of the generator's map after each stage that may attend to texts; none: it cannot."""
        return ()

    @property
    def embeds_classes(self) -> bool:
        """Whether classes enter both networks through embeddings alone, so that texts may take their
        place."""
        return True

    def style_layers(self, data: DataSpec) -> int:
        """How many layers take a style, that of the image's colours among them; 0 without `styles`."""
        return 0

    def generator_inputs(
        self, data: DataSpec, latent: int, progress: Progress, rng: Rng
    ) -> Mapping[str, Any]:
        """Further inputs of the generator in training."""
        return {}

    def sampling_inputs(
        self, generator: nn.Module, latent: int, classes: int, progress: Progress, options: SamplingConfig
    ) -> Mapping[str, Any]:
        """Further inputs of the generator in sampling, the same for every image."""
        return {}

    def first_state(self) -> dict[str, Tensor]:
        """The part of the family's state that follows what the generator measures."""
        return {}

    def sums(self, made: Generated) -> dict[str, Tensor]:
        """What a micro-batch's images add to it; for networks that declare `measures`."""
        return {}

    def advance(self, state: State, sums: State, progress: Progress) -> dict[str, Tensor]:
        """That part after a step."""
        return {}

    def discriminator_inputs(self, progress: Progress) -> Mapping[str, Any]:
        """Further inputs of the discriminator."""
        return {}

    def as_seen(self, real_BCHW: Tensor, progress: Progress) -> Tensor:
        """Real images as training sees them at this stage: coarser, while networks grow."""
        return real_BCHW

    def problems(self, data: DataSpec) -> list[str]:
        """Why they cannot be built for such images, one line each."""
        return []


class GroupedConfig(NetworkConfig):
    """Networks whose discriminator sees the standard deviation over a group of images (`MinibatchStd`)."""

    minibatch_group: int = Field(
        4,
        ge=1,
        description="Images over which the discriminator takes a standard deviation; micro-batches must be a "
        "multiple. 1 leaves it out.",
    )

    @property
    def compares_rows(self) -> bool:
        """By the minibatch standard deviation."""
        return self.minibatch_group > 1

    @property
    def group(self) -> int:
        """As set."""
        return self.minibatch_group


NETWORKS: Components[NetworkConfig] = Components(
    "sfumato.families.gan.networks", NetworkConfig, default="dcgan"
)


def side_problems(channels: Sequence[int], down: Sequence[int], data: DataSpec) -> list[str]:
    """Sides that a generator with a doubling for each of `channels`, or a discriminator with a halving for
    each of `down`, does not fit; one line each.
    """
    found = []
    doublings = len(channels)
    for name, side in (("height", data.height), ("width", data.width)):
        if side % (1 << doublings):
            most = (side & -side).bit_length() - 1
            near = max(1, round(side / (1 << doublings))) << doublings
            fix = f"at most {most} entries" if most else f"a {name} of {near}"
            found.append(
                f"model.network.channels: {doublings} entries double the side {doublings} times, which "
                f"cannot give an image {name} of {side}; use {fix}"
            )
    halvings = len(down)
    side = min(data.height, data.width)
    if side >> halvings == 0:
        found.append(
            f"model.network.discriminator_channels: {halvings} entries halve the image {halvings} times, but "
            f"its side is {side}; use at most {side.bit_length() - 1}"
        )
    return found
