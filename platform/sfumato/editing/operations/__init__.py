"""The kinds of edits. A file here is one: its settings, an `Operation`, and what it does to images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.core.components import Component, Components
from sfumato.core.conditions import Condition, Source
from sfumato.core.config import Config
from sfumato.core.family import SampleRequest
from sfumato.core.paths import HasPath, Path
from sfumato.core.rng import SampleRng
from sfumato.errors import ConfigError
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import Images


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The images that an operation edits at once: always as many (`Operation.at_once`)."""

    images: Tensor
    """[block, C, H, W] float32 in [-1, 1]."""
    mask: Tensor | None
    """[block, 1, H, W], 1 where pixels are to change and 0 where they are kept; None without a mask."""
    request: SampleRequest
    """The conditions and sampling options of each."""
    rng: SampleRng
    """The noise of each; nothing was drawn from it yet."""


class Operation(Component, ABC):
    """One kind of edit, with its settings."""

    masked: ClassVar[bool] = False
    """Whether it needs a mask; others take none."""
    any_size: ClassVar[bool] = False
    """Whether images may have another size than the model's; all of a request have the same."""
    gives: ClassVar[tuple[str, ...]] = ()
    """Conditions of the model that the operation fills from the images themselves."""
    conditioned: ClassVar[bool] = True
    """Whether the model's conditions steer it."""
    reads: ClassVar[bool] = True
    """Whether it edits images; others draw their own (`drawn`)."""

    @abstractmethod
    def problems(self, model: Generator, options: Config) -> list[str]:
        """Why this model cannot do it, one line each."""

    def image_problems(self, model: Generator, shape: tuple[int, ...]) -> list[str]:
        """Why it cannot edit images of this shape (C, H, W), where they need not be of the model's size."""
        return []

    @abstractmethod
    def edited(self, model: Generator, block: Block) -> Tensor:
        """The edited images, [block, C, H, W] in [-1, 1], without gradients."""

    def drawn(self, model: Generator, source: Source, options: Config, seed: int) -> Iterator[Images]:
        """Rows of images, uint8 [n, H, W, C] each, of an operation that reads none."""
        raise AssertionError("it edits images")

    def takes(self, conditions: Sequence[Condition]) -> list[Condition]:
        """Those of the model's that the user gives."""
        return [each for each in conditions if self.conditioned and each.name not in self.gives]

    def at_once(self, model: Generator) -> int:
        """How many images are edited at once; a block."""
        return model.block

    @property
    def count(self) -> int:
        """How many rows `drawn` has."""
        return 0

    def said(self, source: Source, row: int, column: int) -> dict[str, Any]:
        """What one of the images of `drawn` shows, as JSON."""
        return {}

    def options(self, model: Generator, options: Config) -> Config:
        """The sampling options that it runs with, where it needs others than the model's."""
        return options


OPERATIONS: Components[Operation] = Components("sfumato.editing.operations", Operation, default="img2img")


def path_problems(model: Generator) -> list[str]:
    """That a model's images do not come out of noise step by step."""
    if not isinstance(model.family, HasPath):
        return [
            f"--by: family {model.config.family!r} has no path from noise to image; edit with a diffusion run"
        ]
    return []


def path_of(model: Generator, block: Block) -> Path:
    """The path of a block. Raises ConfigError for a model without one."""
    family = model.family
    if not isinstance(family, HasPath):
        raise ConfigError(*path_problems(model))
    return family.path(model.nets, block.request, model.progress, block.rng)


def noise_of(path: Path, block: Block) -> Tensor:
    """The next normal draw of every image, on its device."""
    return block.rng.normal(*path.shape).to(block.images.device)


def on_grid(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask [N, 1, H, W] on the grid of a path's points: 1 where any of a point's pixels is to change."""
    return torch.nn.functional.adaptive_max_pool2d(mask, shape[-2:])
