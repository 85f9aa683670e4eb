"""One request to edit images with a model: what it takes, and the blocks that workers make of it.

Image i sits in row i % block of block i // block, as samples do (`sampling.generator`), so that any process
may edit any block and the pixels do not depend on which. The last block is filled up with its first image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.core.conditions import Rows, Source, conditions_of, told
from sfumato.core.config import Config
from sfumato.core.family import SampleRequest
from sfumato.core.rng import SampleRng
from sfumato.editing.operations import Block, Operation
from sfumato.errors import ConfigError
from sfumato.provenance.facts import Facts
from sfumato.sampling.generator import Generator
from sfumato.sampling.leaving import facts_of
from sfumato.sampling.pixels import Images, to_uint8
from sfumato.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Which images become what; it can be sent to other processes."""

    images: Rows
    masks: Rows | None
    """White where an image is to change: one for all images, or one for each."""
    source: Source
    """The conditions of the images."""
    operation: Operation
    options: Config
    """The sampling options."""
    seed: int

    def check(self, model: Generator) -> None:
        """Raises ConfigError, a line each, with all that makes it impossible."""
        found = list(self.operation.problems(model, self.options))
        found += [] if found else self.operation.image_problems(model, self.images.shape)
        fits = self.operation.any_size or self.images.shape == model.data.shape
        if not found and not fits:
            theirs, ours = (_size(shape) for shape in (self.images.shape, model.data.shape))
            found.append(f"IMAGE: is {theirs}, the model edits images that are {ours}; convert or resize it")
        if self.operation.masked and self.masks is None:
            found.append(f"--mask: {self.operation.kind} needs one, white where the image is to change")
        elif not self.operation.masked and self.masks is not None:
            found.append(f"--mask: has no effect on {self.operation.kind}; leave it out, or use --by inpaint")
        if self.masks is not None:
            found += self._mask_problems(self.masks)
        if found:
            raise ConfigError(*found)

    def _mask_problems(self, masks: Rows) -> list[str]:
        if masks.shape[1:] != self.images.shape[1:]:
            theirs, ours = (f"{shape[2]}x{shape[1]}" for shape in (masks.shape, self.images.shape))
            return [f"--mask: is {theirs}, the image is {ours}; give a mask of the image's size"]
        if len(masks) not in (1, len(self.images)):
            return [f"--mask: {len(masks)} masks for {len(self.images)} images; give one, or one for each"]
        return []

    def blocks(self, model: Generator) -> int:
        """How many blocks all images fill."""
        return -(-len(self.images) // self.operation.at_once(model))

    @torch.no_grad()
    def made(self, model: Generator, block: int) -> Images:
        """The edited images of one block, uint8 [n, H, W, C]; n is less than a block only in the last one."""
        rows, total = self.operation.at_once(model), len(self.images)
        first = block * rows
        numbers = range(first, first + rows)
        there = [number if number < total else first for number in numbers]
        taken = self.operation.takes(model.conditions)
        conditions = conditions_of(self.source, there, taken, model.data)
        request = SampleRequest(num=rows, conditions=conditions, options=self.options)
        rng = SampleRng(self.seed, numbers)
        masks = None if self.masks is None else self._mask(there).to(model.device)
        images = _tensor(self.images, there).to(model.device)
        given = Block(images=images, mask=masks, request=request, rng=rng)
        return to_uint8(self.operation.edited(model, given)[: min(rows, total - first)])

    def facts(self, numbers: Sequence[int]) -> list[Facts]:
        """What is known of the edited images when they leave: their texts, seed, and original file."""
        known = facts_of(self.source, numbers, self.seed)
        places = [self.images.told(number) for number in numbers]
        sources = [(Path(place),) if isinstance(place, str) else () for place in places]
        return [replace(fact, sources=source) for fact, source in zip(known, sources, strict=True)]

    def told(self, model: Generator, number: int) -> dict[str, Any]:
        """How image `number` was made: enough to make it again."""
        return {
            "index": number,
            "image": self.images.told(number),
            "mask": None if self.masks is None else self.masks.told(number % len(self.masks)),
            "row_seed": SampleRng(self.seed, [number]).seeds[0],
            "conditions": told(self.source, number),
            **about_of(model, self.operation, self.options, self.seed),
        }

    def _mask(self, rows: list[int]) -> Tensor:
        """[N, 1, H, W], 1 where the mask is lighter than grey."""
        assert self.masks is not None, "asked for"
        values = _tensor(self.masks, [row % len(self.masks) for row in rows])
        return (values.mean(dim=1, keepdim=True) > 0).float()


@dataclass(frozen=True, slots=True)
class Editor:
    """Builds, where it runs, the function that makes a block; it can be sent to other processes."""

    folder: Path
    """The model's."""
    edit: Edit
    device: str
    base: Path | None
    trust: bool
    root: Path
    """The folder that relative paths of images, masks and conditions start from."""

    def __call__(self) -> Callable[[int], tuple[int, Images]]:
        """From a block's number to that number and its images."""
        os.chdir(self.root)
        model = self.model()
        return lambda block: (block, self.edit.made(model, block))

    def model(self) -> Generator:
        """The model, opened with the options that the edit needs."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = Generator.load(self.folder, device, trust=self.trust, base=self.base)
        return model.with_options(self.edit.options)


def about_of(model: Generator, operation: Operation, options: Config, seed: int) -> dict[str, Any]:
    """What all images of a request have in common, as JSON."""
    return {
        "operation": {"kind": operation.kind, **operation.model_dump(mode="json")},
        "seed": seed,
        "options": options.model_dump(mode="json"),
        "model": model.name,
        "model_digest": model.digest,
        "images_seen": model.images,
        "sfumato": __version__,
    }


def options_for(operation: Operation, model: Generator, changes: Mapping[str, Any]) -> Config:
    """The model's sampling options with the user's changes and those that the operation needs."""
    return operation.options(model, model.options(changes))


def pairs(images: Rows, edited: Mapping[int, Images], most: int) -> Images:
    """The first images, each followed by what became of it, uint8 [2 n, H, W, C]."""
    shown = [image for block in sorted(edited) for image in edited[block]][:most]
    before = to_uint8(_tensor(images, range(len(shown))))
    if shown and before.shape[1:] != shown[0].shape:  # an operation may change the size
        size = torch.nn.functional.interpolate
        before_NCHW = torch.from_numpy(before).movedim(-1, 1).float()
        before = size(before_NCHW, shown[0].shape[:2]).movedim(1, -1).byte().numpy()
    return np.stack([image for both in zip(before, shown, strict=True) for image in both])


def _tensor(rows: Rows, numbers: Any) -> Tensor:
    values = rows.read(list(numbers))
    assert isinstance(values, Tensor), "rows of images"
    return values


def _size(shape: tuple[int, ...]) -> str:
    return f"{'grey' if shape[0] == 1 else 'RGB'} {shape[2]}x{shape[1]}"
