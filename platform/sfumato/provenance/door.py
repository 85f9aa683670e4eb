"""The one door: every generated picture leaves through it, marked as its model's recipe says.

A picture is marked in two steps, because a grid is made of several: `pixels` changes what is in each, `file`
makes the bytes of a file and marks those. Nothing else in Sfumato writes a generated picture
(`tests/unit/provenance/test_door.py` looks for it).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.core.drafts import beside
from sfumato.errors import ConfigError
from sfumato.provenance.config import Mark, ProvenanceSettings
from sfumato.provenance.facts import Facts, Maker, Provenance
from sfumato.provenance.formats import Format, encoded
from sfumato.provenance.metadata import xmp

Images = NDArray[np.uint8]
"""uint8 [N, H, W, C]."""
Applied = dict[str, Any]
"""What was done to one picture, as JSON values."""

IN_FILES: tuple[Mark, ...] = ("metadata",)
"""Marks that belong to a file and that pixels alone cannot carry."""


class Door:
    """Marks the pictures of one maker. Raises ConfigError at once for settings that cannot be honoured."""

    def __init__(self, settings: ProvenanceSettings | None = None, maker: Maker | None = None) -> None:
        self.settings = settings or ProvenanceSettings()
        self.maker = maker or Maker()
        if found := self.settings.problems():
            raise ConfigError(*found)

    @classmethod
    def of(cls, provenance: Provenance, model: str = "", model_digest: str = "") -> Door:
        """The door of a model with this block."""
        return cls(provenance.settings, Maker(model, model_digest, provenance.recipe_digest))

    @property
    def open(self) -> bool:
        """Whether pictures leave unchanged."""
        return self.settings == ProvenanceSettings()

    def check(self, height: int, width: int, *, files: bool = True) -> None:
        """Whether pictures of this size can leave, asked before they are drawn.

        Without `files` they leave as arrays of pixels. Raises ConfigError if a required mark cannot be set.
        """
        if files:
            return
        if lost := [mark for mark in self.settings.require if mark in IN_FILES]:
            raise ConfigError(
                f"provenance.require: {lost[0]} is part of a file, which pixels are not; write files with "
                "`sfumato sample`, or save()"
            )

    def pixels(
        self, images_NHWC: Images, facts: Sequence[Facts] | None = None
    ) -> tuple[Images, list[Applied]]:
        """The images with the marks that are in pixels, and what was done to each.

        `facts` has one entry for each image; None: nothing is known.
        """
        return images_NHWC, [{} for _ in images_NHWC]

    def file(self, picture: Image.Image, facts: Facts | None = None, kind: Format = "png") -> bytes:
        """The bytes of a file, with the marks that belong to a file. Its pixels were marked before."""
        return self._file(picture, facts or Facts(), kind)[0]

    def write(
        self,
        path: str | os.PathLike[str],
        picture: Image.Image,
        facts: Facts | None = None,
        kind: Format = "png",
    ) -> Applied:
        """Write the file, complete or not at all, and return the marks that it has besides its pixels'."""
        content, applied = self._file(picture, facts or Facts(), kind)
        partial = beside(Path(path))
        partial.write_bytes(content)
        partial.replace(path)
        return applied

    def _file(self, picture: Image.Image, facts: Facts, kind: Format) -> tuple[bytes, Applied]:
        applied: Applied = {}
        packet = None
        if self.settings.metadata:
            packet = xmp(self.maker, facts, prompt=self.settings.prompt)
            applied["metadata"] = True
        return encoded(picture, kind, packet), applied
