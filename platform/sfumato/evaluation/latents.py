"""Small steps along paths of latents: what the perceptual path length is measured on."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.core.conditions import Source
from sfumato.core.config import Config
from sfumato.core.family import HasLatent, SampleRequest
from sfumato.core.rng import SampleRng
from sfumato.core.seeds import derive
from sfumato.evaluation.conditions import of_block
from sfumato.evaluation.metrics.metric import MetricSettings
from sfumato.evaluation.metrics.path_length import interpolated
from sfumato.evaluation.statistics import Int64Array
from sfumato.sampling.generator import Generator


class Steps:
    """Pairs of images a step apart, for a source around a generator whose family `HasLatent`."""

    _generator: Generator
    _given: Source
    _options: Config
    block: int

    @torch.no_grad()
    def steps(
        self, index: int, *, seed: int, labels_B: Int64Array | None, settings: MetricSettings
    ) -> tuple[Tensor, Tensor]:
        """Pairs `index * block` onwards, [block, C, H, W] in [-1, 1] each.

        Pair i depends on (seed, i, its conditions) alone; its latents are no sample's. The points of a path
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
