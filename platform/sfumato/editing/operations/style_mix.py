"""Style mixing (Karras, Laine, Aila 2019, fig. 3): a table of images that take some layers' styles from
others.

The first row and column show samples. Every other image is that of its row, with the styles of some layers,
`first` to `last`, from that of its column: coarse ones give pose and shape, fine ones colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.conditions import Source, conditions_of
from sfumato.core.config import Config
from sfumato.core.family import HasStyles, SampleRequest
from sfumato.core.rng import SampleRng
from sfumato.editing.operations import Block, Operation
from sfumato.errors import ConfigError
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import Images, to_uint8


class StyleMix(Operation):
    """A row of images for each of the samples `columns` onwards, a column for each of the first ones."""

    reads: ClassVar[bool] = False
    kind: Literal["style_mix"] = Field("style_mix", description="Selects a table of mixed styles.")
    rows: int = Field(4, ge=1, description="Samples that keep the other layers' styles.")
    columns: int = Field(6, ge=1, description="Samples whose styles are taken: 0 to columns - 1 of the seed.")
    first: int = Field(0, ge=0, description="The first layer whose style is taken, 0 the coarsest.")
    last: int | None = Field(
        None, ge=0, description="The last layer whose style is taken; null: half of all layers."
    )

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model without styles, or with fewer layers."""
        family = model.family
        layers = family.style_layers if isinstance(family, HasStyles) else 0
        if not layers:
            use = "use a gan with network.kind=stylegan, stylegan2 or stylegan3"
            return [f"--by style_mix: this {model.config.family} model has no styles; {use}"]
        taken = self._taken(layers)
        if not taken or taken.stop > layers:
            asked, there = f"{self.first} to {taken.stop - 1}", f"0 to {layers - 1}"
            return [f"--set first, last: asks for layers {asked}; give two of {there}, the smaller first"]
        return []

    def _taken(self, layers: int) -> range:
        last = layers // 2 - 1 if self.last is None else self.last
        return range(self.first, last + 1)

    def edited(self, model: Generator, block: Block) -> Tensor:
        """Never called: it reads no images."""
        raise AssertionError("it reads no images")

    @torch.no_grad()
    def drawn(self, model: Generator, source: Source, options: Config, seed: int) -> Iterator[Images]:
        """The table's lines, uint8 [1 + columns, H, W, C] each, the first one with a white image in front.

        Raises ConfigError for another kind of model.
        """
        family = model.family
        if not isinstance(family, HasStyles) or not family.style_layers:
            raise ConfigError(*self.problems(model, options))
        z_ND = family.latents(
            model.nets, options, model.progress, SampleRng(seed, range(self.columns + self.rows))
        )
        columns, rows = torch.split(z_ND, [self.columns, self.rows])
        heads = self._made(model, source, options, columns, columns, list(range(self.columns)))
        yield torch.cat([torch.full_like(torch.from_numpy(heads[:1]), 255), torch.from_numpy(heads)]).numpy()
        for number, z_D in enumerate(rows, self.columns):
            own_ND = z_D.expand(1 + self.columns, -1)
            taken_ND = torch.cat([z_D[None], columns])
            yield self._made(model, source, options, own_ND, taken_ND, [number] * len(own_ND))

    def _made(
        self,
        model: Generator,
        source: Source,
        options: Config,
        own_ND: Tensor,
        taken_ND: Tensor,
        numbers: list[int],
    ) -> Images:
        """Images with the conditions of these samples, in blocks that are filled up."""
        family, found = model.family, []
        assert isinstance(family, HasStyles), "checked"
        for at in range(0, len(own_ND), model.block):
            there = [min(row, len(own_ND) - 1) for row in range(at, at + model.block)]
            asked = [numbers[row] for row in there]
            conditions = conditions_of(source, asked, model.conditions, model.data)
            request = SampleRequest(num=model.block, conditions=conditions, options=options)
            layers = self._taken(family.style_layers)
            images = family.decode_mixed(
                model.nets, own_ND[there], taken_ND[there], layers, request, model.progress
            )
            found.append(images[: len(own_ND) - at])
        return to_uint8(torch.cat(found))


COMPONENT = StyleMix
