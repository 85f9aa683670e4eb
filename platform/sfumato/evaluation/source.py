"""What an evaluation generates from: the little that it needs to know of a trained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from sfumato.core.batch import DataSpec
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.store import digest
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import to_uint8


class SampleSource(Protocol):
    """A model with its sampling options, which gives images in blocks of a fixed size, in any order.

    `spec` is the kind of images it makes; `conditional` says that it takes labels; equal `digest`s give
    equal images.
    """

    block: int
    spec: DataSpec
    conditional: bool
    digest: str

    def sample_block(self, index: int, *, seed: int, labels_B: Int64Array | None) -> UInt8Array:
        """Images uint8 [block, H, W, C] of samples `index * block` onwards; a pure function."""
        ...


LoadSource = Callable[[Path, Mapping[str, Any]], SampleSource]
"""From a model folder and overrides of its sampling options. It runs on the driver and in every actor."""


class GeneratorSource:
    """A trained model from a model folder."""

    def __init__(
        self, folder: Path, sampling: Mapping[str, Any], *, device: str = "cpu", trust: bool = False
    ) -> None:
        """Raises CheckpointError for a bad folder, ConfigError for options that the family lacks.

        `device` is where the workers sample. A driver without a GPU loads the model on the CPU all the
        same, to learn what it makes. `trust` permits a family by import path, which runs the code
        found there.
        """
        here = device if torch.cuda.is_available() else "cpu"
        self._generator = Generator.load(folder, here, trust=trust)
        self._options = self._generator.options(sampling)
        self.block = self._generator.block
        self.spec = self._generator.data
        self.conditional = self._generator.config.conditional(self.spec)
        self.digest = digest(self._generator.digest, self._options.model_dump(mode="json"), device)

    def sample_block(self, index: int, *, seed: int, labels_B: Int64Array | None) -> UInt8Array:
        """Images uint8 [block, H, W, C]; sample i depends on (seed, i, its label) alone."""
        labels = None if labels_B is None else labels_B.tolist()
        images_BCHW = self._generator.sample_block(
            index * self.block, seed=seed, labels=labels, options=self._options
        )
        return to_uint8(images_BCHW)
