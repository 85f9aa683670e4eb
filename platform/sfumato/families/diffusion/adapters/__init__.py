"""What trains on a pretrained network, where that is not the whole of it. A file here is a way to adapt.

An adapter trains, averages, checkpoints and exports its own tensors alone; a model folder names the base by
its place and digest (`core.family.Trainable`). Patterns match dotted names as shells match files: `*` is
anything, and a pattern may begin in the middle of a name.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.conditions import Condition
from sfumato.core.family import Frozen, Nets
from sfumato.core.pretrained import Pretrained
from sfumato.core.rng import Rng
from sfumato.core.stored import matches
from sfumato.families.diffusion.prior import PriorConfig
from sfumato.text.new_words import NewWord


class AdapterFiles(Protocol):
    """An adapter that diffusers loads onto its base."""

    def write(self, folder: Path, name: str) -> None:
        """Write them into a new folder; `name` is that of the run."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """How rows are looked at."""

    encode: Callable[[Tensor], Tensor]
    """From images [B, C, H, W] in [-1, 1] to where the model works: themselves, or their mean latents."""
    shape: tuple[int, int, int]
    """(C, h, w) of what the network denoises."""
    rng: Rng | None = None
    """In training: what is dropped or drawn."""
    text_dropped_B: Tensor | None = None
    """In training: whose text was dropped."""
    noise: float = 0.0
    """In sampling: standard deviation of the noise that is in what is shown."""
    scale: float = 1.0
    """In sampling: a factor on what an adapter adds, of one that is `scaled`."""
    nets: Nets = field(default_factory=dict)
    """The model's networks, among them those of `AdapterConfig.frozen`."""

    def dropped(self, share: float) -> Tensor | None:
        """Which rows lose their image: `share` of those that keep their text, and half of the others, so that
        the network learns all that two weights of guidance need (Brooks et al. 2023, sec. 3.2.1)."""
        if self.rng is None or not share:
            return None
        draw_B = self.rng.uniform()
        if self.text_dropped_B is None:
            return draw_B < share
        return draw_B < torch.where(self.text_dropped_B.to(draw_B.device), 0.5, share)


@dataclass(frozen=True, slots=True)
class Lower:
    """The model below in a cascade, and how its images become a condition of this one."""

    reference: Pretrained
    condition: str
    factor: int
    noise: float


@dataclass(frozen=True, slots=True)
class Steering:
    """A prior that draws a condition of the model from its texts, and trains beside it."""

    prior: PriorConfig
    condition: str
    length: int
    column: str
    """Of the data: what it learns to draw."""


class AdapterConfig(Component, ABC):
    """Settings of an adapter."""

    inside: ClassVar[str] = ""
    """The name under which a wrapped module holds the module of the base, if it wraps any."""
    needs_base: ClassVar[bool] = True
    """Whether it has to start from a pretrained network; others may also train with a fresh one."""
    of_texts: ClassVar[bool] = True
    """Whether what it shows needs a network of texts."""
    scaled: ClassVar[bool] = False
    """Whether what it adds can be scaled in sampling (`adapter_scale`)."""
    names: ClassVar[tuple[str, ...]] = ()
    """Those of its `inputs`."""

    @abstractmethod
    def trained(self) -> tuple[str, ...]:
        """Patterns over the names of the tensors that train; empty: all of them do."""

    def fresh(self) -> tuple[str, ...]:
        """Patterns over the names of its own tensors, which the base lacks."""
        return self.trained()

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """What steers the images besides the base's own conditions."""
        return ()

    def inputs(self, rows: Mapping[str, Any], look: Look) -> dict[str, Tensor]:
        """What the network gets besides texts, of a batch or of conditions by the names of their columns."""
        return {}

    def frozen(self) -> Mapping[str, Frozen]:
        """Networks that its `inputs` are computed by, by their names among the model's."""
        return {}

    @property
    def lower(self) -> Lower | None:
        """A model that draws what the adapter shows, where the user gives nothing."""
        return None

    def steering(self) -> Steering | None:
        """A prior that draws what the adapter shows, where the user gives nothing."""
        return None

    @property
    def reaches_encoders(self) -> bool:
        """Whether it adapts the text encoders too, also those that stay frozen without it."""
        return False

    def new_word(self) -> NewWord | None:
        """The word that it adds to the text encoders."""
        return None

    @property
    def droppable(self) -> bool:
        """Whether the network learns what there is without the image, which `image_guidance` needs."""
        return False

    def without(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs of no image; of one that is `droppable`."""
        return dict(inputs)

    def data_problems(self, data: DataSpec) -> list[str]:
        """What the data lacks for it, one line each."""
        return []

    def added(self, network: nn.Module) -> nn.Module:
        """The network with what it adds, in place; weights are drawn from torch's global generator."""
        return network

    @abstractmethod
    def problems(self, network: nn.Module) -> list[str]:
        """Why it cannot adapt this network, which may be on the meta device, one line each."""

    @property
    def begins(self) -> bool:
        """Whether `begin` has something to do."""
        return False

    def begin(self, network: nn.Module) -> None:
        """What depends on the base's loaded weights or on a file, before the first step, in place."""

    def in_pipeline(self, pipeline: Any) -> Any:
        """The pipeline of diffusers that draws as the adapted model does, from that of its base.

        Raises ConfigError if there is none.
        """
        return pipeline

    def files(self, nets: Nets, base: str) -> AdapterFiles | None:
        """The adapter in the ecosystem's own form, for exports; None: exports are whole models.

        It is that of the network `ema`; `base` says what it was trained on.
        """
        return None


ADAPTERS: Components[AdapterConfig] = Components("sfumato.families.diffusion.adapters", AdapterConfig)


def anywhere(patterns: Iterable[str]) -> tuple[str, ...]:
    """Patterns that may begin in the middle of a name, after a dot."""
    return tuple(pattern if pattern.startswith("*") else f"*.{pattern}" for pattern in patterns)


def unmatched(patterns: Sequence[str], names: Sequence[str], field: str) -> list[str]:
    """One line for each pattern that matches none of the names, with those that are nearest."""
    lines = []
    for pattern in patterns:
        if any(matches(f".{name}", anywhere([pattern])) for name in names):
            continue
        near = difflib.get_close_matches(pattern.replace("*", ""), names, n=3, cutoff=0.0)
        lines.append(f"{field}: nothing matches {pattern!r}; nearest are {', '.join(near)}")
    return lines
