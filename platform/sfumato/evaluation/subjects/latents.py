"""What metrics ask of a model beside samples: steps along paths of its latents, images placed anew."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.conditions import Source
from sfumato.core.config import Config
from sfumato.core.family import HasLatent, HasPlacement, SampleRequest
from sfumato.core.rng import SampleRng
from sfumato.core.seeds import derive
from sfumato.evaluation.statistics import Int64Array
from sfumato.evaluation.subjects.conditions import of_block
from sfumato.sampling.generator import Generator

Interpolation = Literal["slerp", "lerp"]


class PathSettings(Config):
    """The steps on which the perceptual path length is measured."""

    path_pairs: int = Field(
        1_000, ge=100, description="perceptual_path_length: pairs of images, a step apart."
    )
    path_epsilon: float = Field(1e-4, gt=0, le=0.1, description="perceptual_path_length: length of the step.")
    path_interpolation: Interpolation = Field(
        "slerp", description="perceptual_path_length: along the great circle, or straight (lerp)."
    )
    path_sampling: Literal["full", "end"] = Field(
        "full", description="perceptual_path_length: steps anywhere on a path, or at its start."
    )


def interpolated(a_ND: Tensor, b_ND: Tensor, t_N: Tensor, how: Interpolation) -> Tensor:
    """The point t of the way from a to b [N, D], row by row; in the precision of the arguments.

    `slerp` follows the great circle and changes the norm linearly; parallel rows, which define no circle,
    are interpolated linearly.
    """
    t_N1 = t_N[:, None]
    straight_ND = a_ND + (b_ND - a_ND) * t_N1
    if how == "lerp":
        return straight_ND
    unit_a, unit_b = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-12) for x in (a_ND, b_ND))
    angle_N1 = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1).acos()
    sine_N1 = angle_N1.sin()
    round_ND = (((1 - t_N1) * angle_N1).sin() * a_ND + (t_N1 * angle_N1).sin() * b_ND) / sine_N1
    return torch.where(sine_N1 < 1e-6, straight_ND, round_ND)


class Steps:
    """Pairs of images a step apart, for a source around a generator whose family `HasLatent`."""

    _generator: Generator
    _given: Source
    _options: Config
    block: int

    @torch.no_grad()
    def steps(
        self, index: int, *, seed: int, labels_B: Int64Array | None, settings: PathSettings
    ) -> tuple[Tensor, Tensor]:
        """Pairs `index * block` onwards, [block, C, H, W] in [-1, 1] each.

        Pair i depends only on (seed, i, its conditions); its latents are not a sample's. The points of a path
        are computed in float64, since float32 would move them by a thousandth of the step.
        """
        family, nets, progress = self._generator.family, self._generator.nets, self._generator.progress
        assert isinstance(family, HasLatent)
        rows = range(index * self.block, (index + 1) * self.block)
        a_BD, b_BD = (
            family.latents(nets, self._options, progress, SampleRng(derive(seed, "path", end), rows)).double()
            for end in ("from", "to")
        )
        t_B = torch.zeros(self.block, dtype=torch.float64)
        if settings.path_sampling == "full":
            t_B = SampleRng(derive(seed, "path", "place"), rows).uniform().double()
        conditions = of_block(self._generator, self._given, index, labels_B)
        request = SampleRequest(num=self.block, conditions=conditions, options=self._options)

        def image(t_B: Tensor) -> Tensor:
            z_BD = interpolated(a_BD, b_BD, t_B, settings.path_interpolation)
            return family.decode_latents(nets, z_BD.float(), request, progress)

        return image(t_B), image(t_B + settings.path_epsilon)


class Placed:
    """The same images at several places, for a source around a generator whose family `HasLatent`."""

    _generator: Generator
    _given: Source
    _options: Config
    block: int

    @property
    def places(self) -> bool:
        """Whether the model can."""
        return isinstance(self._generator.family, HasPlacement) and self._generator.family.places

    @torch.no_grad()
    def placed(
        self, index: int, *, seed: int, labels_B: Int64Array | None, placed_B33: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images `index * block` onwards, [block, C, H, W] each, as they are and as the matrices place them.

        Image i depends only on (seed, i, its conditions); its latent is not a sample's.
        """
        family, nets, progress = self._generator.family, self._generator.nets, self._generator.progress
        assert isinstance(family, HasLatent)
        assert isinstance(family, HasPlacement)
        rng = SampleRng(derive(seed, "placed"), range(index * self.block, (index + 1) * self.block))
        z_BD = family.latents(nets, self._options, progress, rng)
        conditions = of_block(self._generator, self._given, index, labels_B)
        request = SampleRequest(num=self.block, conditions=conditions, options=self._options)
        as_it_is_B33 = torch.eye(3).expand(self.block, -1, -1)
        still_BCHW, placed_BCHW = (
            family.decode_placed(nets, z_BD, each, request, progress) for each in (as_it_is_B33, placed_B33)
        )
        return still_BCHW, placed_BCHW
