"""Progressive growing (Karras, Aila, Laine, Lehtinen 2018, table 2, fig. 2).

Training begins with images of 4x4 pixels. Each doubling of the side fades in over `stage_images`, and then
stays as long: `grown`, the number of doublings so far, is a function of the images seen, whose fraction is
the paper's alpha. All images have the full side, coarser ones by repeating pixels. A network has all layers
from the start; those above the present side get images of zeros and a factor of zero, so that every parameter
has a gradient.

Layers have equalised learning rates; the generator normalises each pixel; the discriminator sees the standard
deviation over a group of images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.families.gan.equalised import LEAK, EqualConv2d, EqualLinear, pixel_norm
from sfumato.families.gan.minibatch import MinibatchStd
from sfumato.families.gan.networks import DiscriminatorNet, GeneratorNet, NetworkConfig
from sfumato.families.gan.sampling import SamplingConfig

BASE = 4


class ProGanConfig(NetworkConfig):
    """Networks that grow with the images seen (Karras et al. 2018)."""

    kind: Literal["progan"] = Field("progan", description="Selects progressive growing.")
    channel_base: int = Field(8_192, ge=1, description="Channels at a side, times the side over two.")
    channel_max: int = Field(512, ge=1, description="Most channels of any layer.")
    stage_images: int = Field(
        800_000, ge=1, description="Images over which a doubling fades in, and then stays before the next."
    )
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

    def widths(self, data: DataSpec) -> list[int]:
        """Channels of each side, 4 first."""
        levels = int(math.log2(data.height // BASE)) + 1
        return [max(1, min(2 * self.channel_base // (BASE << at), self.channel_max)) for at in range(levels)]

    def grown(self, progress: Progress) -> float:
        """Doublings so far: whole while a side stays, in between while the next fades in."""
        stage, part = divmod(progress.images / self.stage_images, 1)
        return stage // 2 + (part if stage % 2 else 0.0)

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> ProGanGenerator:
        """See the class."""
        return ProGanGenerator(data.channels, self.widths(data), latent=latent, classes=classes)

    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> ProGanDiscriminator:
        """See the class."""
        return ProGanDiscriminator(
            data.channels, self.widths(data), classes=classes, bias=bias, group=self.minibatch_group
        )

    def generator_inputs(
        self, data: DataSpec, latent: int, progress: Progress, rng: Rng
    ) -> Mapping[str, Any]:
        """How far it has grown."""
        return {"grown": self.grown(progress)}

    def sampling_inputs(
        self, generator: nn.Module, latent: int, classes: int, progress: Progress, options: SamplingConfig
    ) -> Mapping[str, Any]:
        """How far it has grown."""
        return {"grown": self.grown(progress)}

    def discriminator_inputs(self, progress: Progress) -> Mapping[str, Any]:
        """How far it has grown."""
        return {"grown": self.grown(progress)}

    def as_seen(self, real_BCHW: Tensor, progress: Progress) -> Tensor:
        """At the present side, blended with the one before while it fades in."""
        levels = int(math.log2(real_BCHW.shape[2] // BASE))
        level, alpha = _stage(self.grown(progress), levels)
        image_BCHW = _halved(real_BCHW, levels - level)
        if level and alpha < 1:
            image_BCHW = torch.lerp(_doubled(_halved(image_BCHW, 1), 1), image_BCHW, alpha)
        return _doubled(image_BCHW, levels - level)

    @classmethod
    def tiny(cls) -> Self:
        """A doubling that fades in over the images of a test."""
        return cls(channel_base=16, channel_max=4, stage_images=48, minibatch_group=2)

    def problems(self, data: DataSpec) -> list[str]:
        """Sides that doubling 4 does not give."""
        sides = (data.height, data.width)
        if sides[0] == sides[1] and sides[0] >= 2 * BASE and sides[0] & (sides[0] - 1) == 0:
            return []
        near = max(8, 1 << round(max(sides) - 1).bit_length())
        problem = (
            f"model.network.kind: {self.kind} grows square images whose side is a power of two of at least "
            f"{2 * BASE}, and the data has {data.height}x{data.width}; pack it with a side of {near}, or use "
            "network.kind=r3gan or resnet"
        )
        return [problem]


class ProGanGenerator(GeneratorNet):
    """Blocks from 4x4 up, each with a layer that shows its colours."""

    def __init__(self, colours: int, widths: list[int], *, latent: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, latent) if classes else None
        self.first = EqualLinear(latent * (2 if classes else 1), widths[0] * BASE**2)
        self.blocks = nn.ModuleList(
            _Pair(widths[max(0, at - 1)], width, convs=2 if at else 1) for at, width in enumerate(widths)
        )
        self.colours = nn.ModuleList(EqualConv2d(width, colours, 1) for width in widths)
        self.widths = widths

    def forward(self, z_BD: Tensor, label_B: Tensor, *, grown: float = 0.0, **inputs: Any) -> Tensor:
        if self.embedding is not None:
            z_BD = torch.cat([z_BD, self.embedding(label_B)], 1)
        top = len(self.blocks) - 1
        level, alpha = _stage(grown, top)
        x_BCHW = self.first(pixel_norm(z_BD)).unflatten(1, (-1, BASE, BASE))
        x_BCHW = pixel_norm(F.leaky_relu(x_BCHW, LEAK))
        image_BCHW = before_BCHW = None
        idle = x_BCHW.new_zeros(())
        for at, (block, colours) in enumerate(zip(self.blocks, self.colours, strict=True)):
            if at > level:
                idle = idle + _idle(block, self.widths[at - 1], x_BCHW)
                idle = idle + _idle(colours, self.widths[at], x_BCHW)
                continue
            x_BCHW = block(x_BCHW if at == 0 else _doubled(x_BCHW, 1), normed=True)
            if at < level - 1:
                idle = idle + _idle(colours, self.widths[at], x_BCHW)
                continue
            before_BCHW, image_BCHW = image_BCHW, colours(x_BCHW)
        assert image_BCHW is not None, "the first block always counts"
        if before_BCHW is not None:
            image_BCHW = torch.lerp(_doubled(before_BCHW, 1), image_BCHW, alpha)
        return (_doubled(image_BCHW, top - level) + idle).float()


class ProGanDiscriminator(DiscriminatorNet):
    """The generator's mirror image."""

    def __init__(self, colours: int, widths: list[int], *, classes: int, bias: bool, group: int) -> None:
        super().__init__()
        self.mixes_rows = group > 1
        self.colours = nn.ModuleList(EqualConv2d(colours, width, 1) for width in widths)
        self.blocks = nn.ModuleList(
            _Pair(width, widths[at], convs=2, narrow=True) for at, width in enumerate(widths[1:])
        )
        self.deviation = MinibatchStd(group) if group > 1 else None
        self.conv = EqualConv2d(widths[0] + (group > 1), widths[0], 3)
        self.linear = EqualLinear(widths[0] * BASE**2, widths[0])
        self.output = EqualLinear(widths[0], 1, bias=bias)
        self.embedding = nn.Embedding(classes, widths[0]) if classes else None
        self.widths, self.seen = widths, colours

    def score(self, x_BCHW: Tensor, label_B: Tensor, *, grown: float = 0.0, **inputs: Any) -> Tensor:
        top = len(self.widths) - 1
        level, alpha = _stage(grown, top)
        image_BCHW = _halved(x_BCHW, top - level)
        x_BCHW = F.leaky_relu(self.colours[level](image_BCHW), LEAK)
        idle = x_BCHW.new_zeros(())
        for at in range(top, -1, -1):
            if at not in (level, level - 1):
                idle = idle + _idle(self.colours[at], self.seen, x_BCHW)
            if at > level:
                idle = idle + _idle(self.blocks[at - 1], self.widths[at], x_BCHW)
            elif at:
                x_BCHW = _halved(self.blocks[at - 1](x_BCHW), 1)
                if at == level:
                    before_BCHW = F.leaky_relu(self.colours[at - 1](_halved(image_BCHW, 1)), LEAK)
                    x_BCHW = torch.lerp(before_BCHW, x_BCHW, alpha)
        if self.deviation is not None:
            x_BCHW = self.deviation(x_BCHW)
        x_BCHW = F.leaky_relu(self.conv(x_BCHW), LEAK)
        phi_BF = F.leaky_relu(self.linear(x_BCHW.flatten(1)), LEAK)
        score_B: Tensor = self.output(phi_BF).squeeze(1) + idle
        if self.embedding is not None:
            score_B = score_B + (self.embedding(label_B) * phi_BF).sum(1) / phi_BF.shape[1] ** 0.5
        return score_B.float()


class _Pair(nn.Module):
    """One or two convolutions of one side."""

    def __init__(self, inputs: int, outputs: int, *, convs: int, narrow: bool = False) -> None:
        super().__init__()
        middle = inputs if narrow else outputs  # the discriminator changes channels last
        sizes = [(inputs, middle), (middle, outputs)] if convs == 2 else [(inputs, outputs)]
        self.convs = nn.ModuleList(EqualConv2d(a, b, 3) for a, b in sizes)

    def forward(self, x_BCHW: Tensor, *, normed: bool = False) -> Tensor:
        for conv in self.convs:
            x_BCHW = F.leaky_relu(conv(x_BCHW), LEAK)
            x_BCHW = pixel_norm(x_BCHW) if normed else x_BCHW
        return x_BCHW


def _stage(grown: float, top: int) -> tuple[int, float]:
    """The doublings of the present side, and how far the last of them has faded in, in (0, 1]."""
    level = min(math.ceil(grown), top)
    return level, min(1.0, grown - (level - 1))


def _idle(layer: nn.Module, channels: int, like: Tensor) -> Tensor:
    """Zero, with a gradient of zero for the layer."""
    out: Tensor = layer(like.new_zeros(1, channels, 2, 2))
    return 0 * out.sum()


def _halved(x_BCHW: Tensor, times: int) -> Tensor:
    return F.avg_pool2d(x_BCHW, 1 << times) if times else x_BCHW


def _doubled(x_BCHW: Tensor, times: int) -> Tensor:
    return F.interpolate(x_BCHW, scale_factor=float(1 << times)) if times else x_BCHW


COMPONENT = ProGanConfig
