"""Attention to texts, which edits take over from one text to another (Hertz et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from sfumato.core.family import Nets, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What a sample of one text takes over of one of another, from the same noise."""

    cross: float
    """Share of the sampler's steps, from the first, in which attention to words is taken over."""
    own: float
    """The same of the image's attention to itself."""
    places: int
    """Attention of the image to itself is taken over where it has at most so many places."""
    swap: bool
    """Whether words that stand in the place of others take over the attention to these."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Factors on the attention to words of the new text, by word."""


@dataclass(frozen=True, slots=True)
class Attended:
    """Both samples, each [N, C, H, W] in [-1, 1], and where the second one attends to."""

    source: Tensor
    edited: Tensor
    words: Sequence[Sequence[str]]
    """Of the new text of each row."""
    maps: Sequence[Tensor]
    """For each row the attention to its words, [words, h, w], a mean over steps, layers and heads."""


@runtime_checkable
class HasAttention(Protocol):
    """A family whose networks may attend to texts."""

    def attention_problems(self, nets: Nets) -> list[str]:
        """Why these networks have no attention to words that could be taken over, one line each."""
        ...

    def attended(
        self,
        nets: Nets,
        source: SampleRequest,
        target: SampleRequest,
        progress: Progress,
        rng: SampleRng,
        control: Control,
    ) -> Attended:
        """Samples of two requests that differ in their texts alone, from the same noise.

        The first is that of `Family.sample`, bit by bit, and so is the second without control. Raises
        ConfigError for a word with a weight that is not in a text.
        """
        ...
