"""What is evaluated, as an evaluation sees it: something that gives images, and what else it may know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import Float64Array, Int64Array, UInt8Array
from sfumato.evaluation.subjects.image_set import ImageBlock
from sfumato.evaluation.subjects.latents import PathSettings
from sfumato.provenance.door import Door

Kind = Literal["samples", "reconstructions", "images"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A block of images uint8 [n, H, W, C]; if they are not requested by class, their labels [n].

    `real` are the originals of reconstructions. `evaluations` counts network passes per
    image; 0 if they were not counted.
    """

    images: UInt8Array
    label_B: Int64Array | None = None
    real: UInt8Array | None = None
    evaluations: float = 0.0


class SampleSource(Protocol):
    """Images in blocks of a fixed size, in any order; a pure function of the index, the seed and the labels.

    `spec` is the kind of images; `conditional`: they have labels, requested or their own. Equal
    `digest`s give equal images. `size` is their number, None for as many as requested. Pictures of them
    leave by `door`.
    """

    kind: Kind
    block: int
    spec: DataSpec
    conditional: bool
    digest: str
    size: int | None
    door: Door

    def draw(self, index: int, *, seed: int, labels_B: Int64Array | None) -> Drawn:
        """Images `index * block` onwards: `block` of them, fewer only at the end of a set."""
        ...


@runtime_checkable
class GivesCaptions(Protocol):
    """A source whose images were made for captions, or bring their own; `captioned` says whether."""

    captioned: bool

    def captions_of(self, index: int) -> list[str]:
        """One for each image of block `index`."""
        ...


@runtime_checkable
class GivesLikelihood(Protocol):
    """A source whose model gives the likelihood of real images."""

    @property
    def likelihood_of(self) -> str:
        """The variable whose likelihood it is."""
        ...

    @property
    def trained_on(self) -> str | None:
        """Digest of the images that the model was trained on, if that is known."""
        ...

    def bits(
        self, index: int, real: ImageBlock, *, seed: int, images: Reference | None = None
    ) -> Float64Array:
        """Bits per dimension [n] of the real images of block `index` of a set; None: the reference."""
        ...


@runtime_checkable
class WalksLatents(Protocol):
    """A source whose model draws from a latent vector."""

    def steps(
        self, index: int, *, seed: int, labels_B: Int64Array | None, settings: PathSettings
    ) -> tuple[Tensor, Tensor]:
        """Pairs of images [block, C, H, W] in [-1, 1], a small step of the latents apart."""
        ...


@runtime_checkable
class TellsOverfitting(Protocol):
    """A source whose model's training may have measured overfitting."""

    @property
    def overfitting(self) -> float | None: ...


@runtime_checkable
class PlacesImages(Protocol):
    """A source whose model can move and turn what an image shows, if `places`."""

    @property
    def places(self) -> bool: ...

    def placed(
        self, index: int, *, seed: int, labels_B: Int64Array | None, placed_B33: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images [block, C, H, W], about in [-1, 1], as they are and as the matrices place them."""
        ...


LoadSource = Callable[[Path, Mapping[str, Any]], SampleSource]
"""From a model folder and overrides of its sampling options. It runs on the driver and in every actor."""
