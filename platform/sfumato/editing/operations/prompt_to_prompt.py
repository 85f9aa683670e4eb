"""Prompt-to-Prompt (Hertz et al. 2022): a sample of a new text that keeps the layout of one of another text,
by taking over its attention.

Words in the place of others take over the attention to these (word swap), words that were added keep their
own (refinement), and weights make words count more or less (reweighting). Each line of the grid has the
sample of `source`, that of `--prompt`, and where the latter attends to, word by word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.core.attention import Attended, Control, HasAttention
from sfumato.core.batch import Texts
from sfumato.core.conditions import Source, conditions_of, told
from sfumato.core.config import Config
from sfumato.core.family import SampleRequest
from sfumato.core.rng import SampleRng
from sfumato.editing.operations import Block, Operation
from sfumato.errors import ConfigError
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import Images, to_uint8

TEXT = "text"


class PromptToPrompt(Operation):
    """Another text, the same layout."""

    reads: ClassVar[bool] = False
    kind: Literal["prompt_to_prompt"] = Field(
        "prompt_to_prompt", description="Selects samples that take over attention."
    )
    source: str = Field(min_length=1, description="The text whose sample is edited; --prompt is the new one.")
    num: int = Field(4, ge=1, description="Samples: 0 to num - 1 of the seed.")
    cross: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Share of the steps in which attention to words is taken over; less follows the new text "
        "more freely, and 0 with own=0 draws what sample draws.",
    )
    own: float = Field(
        0.4, ge=0, le=1, description="The same of the image's attention to itself, which keeps shapes."
    )
    places: int = Field(
        256, ge=0, description="That attention is taken over where the image has at most so many places."
    )
    swap: bool = Field(
        True, description="Words in the place of others take over their attention; else they keep their own."
    )
    reweight: dict[str, float] = Field(
        {}, description="Factors on the attention to words of the new text, such as {red: 2, small: 0}."
    )
    maps: bool = Field(True, description="Draw the attention to each word of the new text too.")

    @property
    def count(self) -> int:
        """One row a sample."""
        return self.num

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model without attention to words."""
        family = model.family
        if not isinstance(family, HasAttention):
            return [
                f"--by prompt_to_prompt: a {model.config.family} model attends to no texts; use diffusion"
            ]
        return [f"--by prompt_to_prompt: {line}" for line in family.attention_problems(model.nets)]

    def said(self, source: Source, row: int, column: int) -> dict[str, Any]:
        """Of which sample it is, with the new text and other conditions, and which of its images."""
        conditions = told(source, row)
        words = list(dict.fromkeys(str(conditions[TEXT]).split()))
        shown = ["the source", "the edit", *(f"attention to {word}" for word in words)]
        what = shown[column] if column < len(shown) else "nothing"
        return {"sample": row, "shows": what, "conditions": conditions}

    def edited(self, model: Generator, block: Block) -> Tensor:
        """Never called: it reads no images."""
        raise AssertionError("it reads no images")

    @torch.no_grad()
    def drawn(self, model: Generator, source: Source, options: Config, seed: int) -> Iterator[Images]:
        """For each sample both images and the maps, uint8 [2 + words, H, W, C].

        Raises ConfigError without a new text, and for a word with a weight that is not in it.
        """
        if TEXT not in source:
            raise ConfigError("--prompt: prompt_to_prompt needs a new text; source is the text before")
        for first in range(0, self.num, model.block):
            yield from self._rows(model, source, options, seed, first)

    def _rows(
        self, model: Generator, source: Source, options: Config, seed: int, first: int
    ) -> Iterator[Images]:
        family = model.family
        assert isinstance(family, HasAttention), "checked among the problems"
        numbers = range(first, first + model.block)
        conditions = conditions_of(source, list(numbers), model.conditions, model.data)
        target = SampleRequest(num=model.block, conditions=conditions, options=options)
        before = {**conditions, TEXT: Texts([self.source] * model.block)}
        control = Control(
            cross=self.cross, own=self.own, places=self.places, swap=self.swap, weights=self.reweight
        )
        found = family.attended(
            model.nets,
            replace(target, conditions=before),
            target,
            model.progress,
            SampleRng(seed, numbers),
            control,
        )
        most = max(len(words) for words in found.words) if self.maps else 0
        for row in range(min(model.block, self.num - first)):
            images = to_uint8(torch.stack([found.source[row], found.edited[row]]))
            yield np.concatenate([images, pictures(found, row, most)]) if most else images


def pictures(found: Attended, row: int, most: int) -> Images:
    """The maps of a row as images, uint8 [most, H, W, C], each up to its largest value; black after the
    last word."""
    size, maps = found.edited.shape[-2:], found.maps[row]
    shown = torch.full((most, *found.edited.shape[1:]), -1.0)
    if len(maps):
        scaled = maps / maps.flatten(1).amax(dim=1).clamp(min=1e-12).view(-1, 1, 1)
        large = F.interpolate(scaled.unsqueeze(1), size, mode="nearest")
        shown[: len(maps)] = (large * 2 - 1).cpu()
    return to_uint8(shown)


COMPONENT = PromptToPrompt
