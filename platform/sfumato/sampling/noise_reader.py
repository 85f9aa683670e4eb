"""Finds the mark in the noise that pictures were drawn from, by inverting the model's sampler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from sfumato.core.conditions import Conditions, Source, conditions_of
from sfumato.core.family import SampleRequest
from sfumato.core.inversion import inverted
from sfumato.core.paths import HasPath
from sfumato.core.rng import SampleRng
from sfumato.errors import ConfigError
from sfumato.provenance.watermarks import Detection
from sfumato.sampling.generator import Generator
from sfumato.sampling.marked_noise import FIELD, mark_of
from sfumato.sampling.pixels import Images, from_uint8


class NoiseReader:
    """A model, and how its sampler is inverted: unguided, since nobody knows what a picture was drawn for.

    `source` are conditions, where they are known after all; without them the model's null class or empty text
    stands for them. `steps` is how many steps back are taken (None: as many as to draw), `refine` the
    iterations of each.
    """

    def __init__(
        self, model: Generator, *, source: Source | None = None, steps: int | None = None, refine: int = 2
    ) -> None:
        """Raises ConfigError: a model whose noise has no mark, or cannot be found again."""
        changes = {
            "guidance": 1.0,
            "clip": False,
            "guidance_interval": None,
            "guidance_rescale": 0.0,
            "guide": None,
        }
        fields = type(model.options()).model_fields
        given = {} if steps is None else {"steps": steps}
        options = model.options(
            {**{name: value for name, value in changes.items() if name in fields}, **given}
        )
        mark = mark_of(model.provenance.settings, model.family, options)
        if mark is None:
            raise ConfigError(
                f"--by: {model.name}'s pictures begin in noise without a mark ({FIELD}); name another run"
            )
        self._model, self._mark, self._options = model.with_options(options), mark, options
        self._source, self._refine = source or {}, refine
        self.block = model.block
        """Pictures that it reads at once."""

    def read(self, images: Sequence[Images]) -> list[Detection]:
        """What is found in up to `block` images uint8 [H, W, C]."""
        return [self._mark.detect(noise) for noise in self.noise(images)]

    def noise(self, images: Sequence[Images]) -> torch.Tensor:
        """The noise [N, C, h, w] from which the model would draw up to `block` images; those of another size
        are resized to the model's."""
        data = self._model.data
        rows = np.stack([fitted(image, data.height, data.width, data.channels) for image in images])
        filled = np.concatenate([rows, rows[:1].repeat(self.block - len(rows), 0)])
        return self._noise(filled)[: len(rows)]

    @torch.no_grad()
    def _noise(self, images_NHWC: Images) -> torch.Tensor:
        model, numbers = self._model, range(self.block)
        conditions: Conditions = {}
        if self._source:
            conditions = conditions_of(self._source, numbers, model.conditions, model.data)
        request = SampleRequest(num=self.block, conditions=conditions, options=self._options)
        assert isinstance(model.family, HasPath), "it has a mark"
        path = model.family.path(model.nets, request, model.progress, SampleRng(0, numbers))
        x_NChw = path.encode(from_uint8(images_NHWC).to(model.device))
        return inverted(path, x_NChw, 0, self._refine)


def fitted(image_HWC: Images, height: int, width: int, channels: int) -> Images:
    """The image as a model takes it: resized (bicubic), grey or in colours."""
    picture = Image.fromarray(image_HWC if image_HWC.shape[-1] > 1 else image_HWC[..., 0])
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    found = np.array(picture)
    return found if found.ndim == 3 else found[..., None]
