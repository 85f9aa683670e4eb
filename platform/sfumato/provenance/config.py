"""The recipe's `provenance:` block. Without it, pictures leave as they were drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from sfumato.core.config import Config
from sfumato.errors import ConfigError
from sfumato.provenance.manifests.config import C2paSettings
from sfumato.provenance.manifests.signing import Signing
from sfumato.provenance.noises import NOISES, NoiseConfig
from sfumato.provenance.screening import ScreenSettings
from sfumato.provenance.watermarks import WATERMARKS, WatermarkConfig

Mark = Literal["metadata", "c2pa", "watermark", "noise", "filter"]


class ProvenanceSettings(Config):
    """What is done to every generated picture before it leaves."""

    filter: ScreenSettings | None = Field(
        None,
        description="What must not come out: a classifier of images, rules for prompts; null: anything may.",
    )
    watermark: Annotated[WatermarkConfig, WATERMARKS] | None = Field(
        None, description="Bits hidden in the pixels, such as {kind: spread}; null: none."
    )
    noise: Annotated[NoiseConfig, NOISES] | None = Field(
        None,
        description="A mark in the noise that a diffusion model's samples begin with, such as {kind: "
        "gaussian_shading}; null: none.",
    )
    metadata: bool = Field(
        False, description="Write XMP: IPTC digital source type, the model, and the recipe's digest."
    )
    c2pa: C2paSettings | None = Field(None, description="Sign a C2PA manifest into every file; null: none.")
    prompt: bool = Field(
        False, description="Whether a prompt may be written into the picture, where anybody can read it."
    )
    require: tuple[Mark, ...] = Field(
        (), description="Marks without which no picture may leave; a command that cannot set them refuses."
    )

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The marks that are on."""
        on: dict[Mark, bool] = {
            "metadata": self.metadata,
            "c2pa": self.c2pa is not None,
            "watermark": self.watermark is not None,
            "noise": self.noise is not None,
            "filter": self.filter is not None,
        }
        return tuple(mark for mark, set_ in on.items() if set_)

    @property
    def packages(self) -> tuple[str, ...]:
        """What the marks in pixels need besides Sfumato's sampling side."""
        found = [name for part in (self.watermark, self.noise) if part for name in part.packages]
        images = None if self.filter is None else self.filter.images
        return tuple(dict.fromkeys([*found, *(() if images is None else images.packages)]))

    def problems(self) -> list[str]:
        """What contradicts itself or is missing on this machine, one line each."""
        found = [
            f"provenance.require: {mark} is required but off; add provenance.{mark}, or leave it out"
            for mark in self.require
            if mark not in self.marks
        ]
        parts: list[Callable[[], object]] = []
        if self.c2pa is not None:
            parts.append(partial(Signing, self.c2pa))
        if self.watermark is not None:
            parts.append(self.watermark.build)
        if self.filter is not None and self.filter.images is not None:
            parts.append(self.filter.images.build)
        return [*found, *(line for part in parts for line in _refusals(part))]

    def size_problems(self, height: int, width: int) -> list[str]:
        """Why pictures of this size cannot have what is required, one line each."""
        if self.watermark is None or "watermark" not in self.require:
            return []
        least = self.watermark.least
        if min(height, width) >= least:
            return []
        size = f"needs {least} pixels a side, the images have {height}x{width}"
        return [f"provenance.require: watermark {self.watermark.kind} {size}; take watermark out of require"]


def _refusals(part: Callable[[], object]) -> tuple[str, ...]:
    try:
        part()
    except ConfigError as error:
        return error.problems
    return ()
