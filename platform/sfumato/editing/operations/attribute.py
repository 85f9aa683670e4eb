"""Attribute arithmetic (Radford et al. 2016, sec. 6.3.2; Larsen et al. 2016, sec. 4.2): images get more of
what tells two sets of pictures apart.

The direction is the mean vector of some pictures less that of others: of two folders, or of two classes of
a packed data set. A VAE's vector of a picture is its posterior's mean, a flow's the noise that makes it; a
GAN's is found by optimisation (`project`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.core.family import EncodesLatent
from sfumato.core.rng import SampleRng
from sfumato.editing.labelled import Labelled, mean_of
from sfumato.editing.operations import Block
from sfumato.editing.operations.project import Project, decoded
from sfumato.sampling.condition_files import ImageFiles
from sfumato.sampling.generator import Generator

_WAYS: WeakKeyDictionary[Generator, dict[str, Tensor]] = WeakKeyDictionary()
"""Directions by classes that a model has found, since all blocks of images need the same."""


class Attribute(Project):
    """More of what one set of pictures has and the other lacks."""

    kind: Literal["attribute"] = Field(  # type: ignore[assignment]
        "attribute", description="Selects arithmetic with the latent vectors of two sets of pictures."
    )
    more: str = Field(
        min_length=1, description="Folder of pictures that have the attribute; with `among`, a class."
    )
    less: str = Field(
        "", description="Folder of pictures that lack it; with `among`, a class, or nothing for all others."
    )
    among: str = Field("", description="A packed data set whose classes `more` and `less` are.")
    column: str = Field("label", description="Its column of classes.")
    most: int = Field(256, ge=1, description="At most so many pictures of each class.")
    amount: float = Field(1.0, description="How often the difference is added; negative takes it away.")
    vectors: Literal["auto", "search"] = Field(
        "auto",
        description="Whether vectors are computed where the model can, as VAEs and flows do, or all found by "
        "optimisation.",
    )

    def problems(self, model: Generator, options: Config) -> list[str]:
        """As `Project`, and settings that contradict each other."""
        if found := super().problems(model, options):
            return found
        if not self.among and not self.less:
            return ["--set less: missing; name a folder of pictures that lack the attribute"]
        if self.among and self.more == self.less:
            return [f"--set less: is {self.less}, as is more; name another class, or none for all others"]
        return []

    def image_problems(self, model: Generator, shape: tuple[int, ...]) -> list[str]:
        """Folders without pictures, or with such of another size; classes that are not there."""
        if self.among:
            wanted = {"more": self.more} | ({"less": self.less} if self.less else {})
            return Labelled(self.among, self.column).problems(model, wanted)
        found = []
        for name in ("more", "less"):
            place = getattr(self, name)
            if not Path(place).exists():
                found.append(f"--set {name}: {place} is not there; name a folder of pictures")
            elif ImageFiles.at(f"--set {name}", [place]).shape != model.data.shape:
                ours = f"{model.data.width}x{model.data.height}"
                found.append(f"--set {name}: the pictures are not of the model's {ours}; resize them")
        return found

    def edited(self, model: Generator, block: Block) -> Tensor:
        """The images, moved."""
        moved_ND = self._vectors(model, block) + self.amount * self._way(model, block)
        return decoded(model, block.request, moved_ND)

    def _way(self, model: Generator, block: Block) -> Tensor:
        """The direction [D]."""
        if not self.among:
            more, less = (mean_of(self._files(model, block, place)) for place in (self.more, self.less))
            return more - less
        known = _WAYS.setdefault(model, {})
        asked = self.model_dump_json(exclude={"amount"}) + block.request.options.model_dump_json()
        if asked not in known:
            known[asked] = self._between_classes(model, block.request.options)
        return known[asked]

    def _between_classes(self, model: Generator, options: Config) -> Tensor:
        data = Labelled(self.among, self.column)

        def mean(name: str, *, others: bool = False) -> Tensor:
            blocks = data.blocks(model, options, name, most=self.most, others=others)
            return mean_of((self._vectors(model, each), count) for each, count in blocks)

        return mean(self.more) - (mean(self.less) if self.less else mean(self.more, others=True))

    def _files(self, model: Generator, block: Block, place: str) -> Iterator[tuple[Tensor, int]]:
        """The vectors of all pictures in a folder, under the block's conditions; and how many count."""
        files = ImageFiles.at("--set", [place])
        for first in range(0, len(files), model.block):
            numbers = [min(first + row, len(files) - 1) for row in range(model.block)]
            images = files.read(numbers)
            assert isinstance(images, Tensor), "rows of images"
            rows = replace(block, images=images.to(block.images.device), rng=SampleRng(0, numbers))
            yield self._vectors(model, rows), len(files) - first

    def _vectors(self, model: Generator, block: Block) -> Tensor:
        """Those of the block's images, [N, D]."""
        family = model.family
        if self.vectors == "auto" and isinstance(family, EncodesLatent):
            return family.encode_latents(model.nets, block.images, block.request, model.progress)
        return self.found(model, block)


COMPONENT = Attribute
