"""The one door: every generated picture leaves through it, marked as its model's recipe says.

A picture is marked in two steps, because a grid is made of several: `pixels` changes what is in each, `file`
makes the bytes of a file and marks those. Nothing else in Sfumato writes a generated picture
(`tests/unit/provenance/test_door.py` looks for it).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.core.drafts import write_whole
from sfumato.errors import ConfigError
from sfumato.provenance.config import Mark, ProvenanceSettings
from sfumato.provenance.facts import Facts, Maker
from sfumato.provenance.formats import MIME, Format, animated, encoded
from sfumato.provenance.manifests.signed import Signer
from sfumato.provenance.manifests.signing import Signing
from sfumato.provenance.metadata import xmp
from sfumato.provenance.screening import Screen
from sfumato.provenance.stored import Provenance
from sfumato.provenance.watermarks import Watermark

Images = NDArray[np.uint8]
"""uint8 [N, H, W, C]."""
Applied = dict[str, Any]
"""What was done to one picture, as JSON values."""

IN_FILES: tuple[Mark, ...] = ("metadata", "c2pa")
"""Marks that belong to a file and that pixels alone cannot carry."""


class Door:
    """Marks the pictures of one maker. Keys and networks are loaded by the first picture, or by `check`."""

    def __init__(self, settings: ProvenanceSettings | None = None, maker: Maker | None = None) -> None:
        self.settings = settings or ProvenanceSettings()
        self.maker = maker or Maker()
        self._screen = None if self.settings.filter is None else Screen(self.settings.filter)

    @classmethod
    def of(cls, provenance: Provenance, model: str = "", model_digest: str = "") -> Door:
        """The door of a model with this block."""
        return cls(provenance.settings, Maker(model, model_digest, provenance.recipe_digest))

    @property
    def open(self) -> bool:
        """Whether pictures leave unchanged."""
        return self.settings == ProvenanceSettings()

    @property
    def counts(self) -> Mapping[str, int]:
        """What the filter met so far: `images`, those `found`, and every action; empty without one."""
        return {} if self._screen is None else dict(self._screen.counts)

    def check(self, height: int, width: int, *, files: bool = True, drawn: bool = True) -> None:
        """Whether pictures of this size can leave, asked before they are drawn.

        Without `files` they leave as arrays of pixels; without `drawn` they are edits of others, and do not
        begin in the model's noise. Raises ConfigError if a required mark cannot be set, or one that is on
        lacks its package, key or certificate.
        """
        settings = self.settings
        if found := [*settings.problems(), *settings.size_problems(height, width)]:
            raise ConfigError(*found)
        if not files and (lost := [mark for mark in settings.require if mark in IN_FILES]):
            raise ConfigError(
                f"provenance.require: {lost[0]} is part of a file, which pixels are not; write files with "
                "`sfumato sample`, or save()"
            )
        if not drawn and "noise" in settings.require:
            raise ConfigError(
                "provenance.require: noise marks pictures that are drawn, not edited ones; take noise out of "
                "require, and require watermark"
            )
        if self._screen is not None:
            self._screen.prepare()
        if settings.watermark is not None:
            _ = self._watermark
        if settings.c2pa is not None and files:
            _ = self._signer

    @property
    def asks(self) -> bool:
        """Whether there are rules for prompts."""
        return self.settings.filter is not None and bool(self.settings.filter.prompts)

    def ask(self, facts: Sequence[Facts]) -> None:
        """Raises ConfigError if a rule refuses one of the prompts, asked before they are drawn."""
        if self._screen is not None:
            self._screen.ask(facts)

    def pixels(
        self, images_NHWC: Images, facts: Sequence[Facts] | None = None, *, drawn: bool = True
    ) -> tuple[Images, list[Applied]]:
        """The images with the marks that are in pixels, and what was done to each.

        `facts` has one entry for each image; None: nothing is known. `drawn`: as in `check`. A refused image
        comes back grey, for grids and arrays; `refused` recognises it.
        """
        noise = self.settings.noise if drawn else None
        mark = {} if noise is None else {"noise": {"kind": noise.kind, "message": noise.message}}
        applied: list[Applied] = [dict(mark) for _ in images_NHWC]
        if self._screen is not None:
            images_NHWC, found = self._screen.screened(images_NHWC, facts or [Facts()] * len(applied))
            for marks, entry in zip(applied, found, strict=True):
                marks["filter"] = entry
        return self._watermarked(images_NHWC, applied), applied

    def sheet(self, picture: Image.Image) -> Image.Image:
        """A grid, marked as a whole: a watermark in one of its tiles would not be found in it."""
        pixels = np.asarray(picture)
        whole = (pixels if pixels.ndim == 3 else pixels[..., None])[None]
        if self.settings.watermark is None or min(picture.size) < self.settings.watermark.least:
            return picture
        marked = self._watermark.embed(whole, self.settings.watermark.bits)[0]
        return Image.fromarray(marked if pixels.ndim == 3 else marked[..., 0])

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
        write_whole(Path(path), content)
        return applied

    def animation(
        self, path: str | os.PathLike[str], pictures: Sequence[Image.Image], milliseconds: int
    ) -> None:
        """Write an animated WebP of pictures whose pixels were marked before, each shown for so long."""
        settings, facts, packet = self.settings, Facts(), None
        if settings.metadata:
            packet = xmp(self.maker, facts, prompt=settings.prompt)
        content = animated(pictures, milliseconds, packet)
        if settings.c2pa is not None:
            content = self._signer.signed(content, MIME["webp"], self.maker, facts, prompt=settings.prompt)
        write_whole(Path(path), content)

    def _watermarked(self, images_NHWC: Images, applied: Sequence[Applied]) -> Images:
        settings = self.settings.watermark
        if settings is None or not len(images_NHWC):
            return images_NHWC
        mark: Applied = {"kind": settings.kind, "message": settings.message}
        if min(images_NHWC.shape[1:3]) < settings.least:
            if found := self.settings.size_problems(*images_NHWC.shape[1:3]):
                raise ConfigError(*found)
            mark = {"kind": settings.kind, "left_out": f"needs {settings.least} pixels a side"}
        else:
            images_NHWC = self._watermark.embed(images_NHWC, settings.bits)
        for marks in applied:
            marks["watermark"] = mark
        return images_NHWC

    def _file(self, picture: Image.Image, facts: Facts, kind: Format) -> tuple[bytes, Applied]:
        applied: Applied = {}
        packet = None
        if self.settings.metadata:
            packet = xmp(self.maker, facts, prompt=self.settings.prompt)
            applied["metadata"] = True
        content = encoded(picture, kind, packet)
        if self.settings.c2pa is not None:
            content = self._signer.signed(content, MIME[kind], self.maker, facts, prompt=self.settings.prompt)
            # Signatures differ every time: this is what the same seed has in common.
            applied["c2pa"] = {"pixels_sha256": hashlib.sha256(picture.tobytes()).hexdigest()}
        return content, applied

    @cached_property
    def _watermark(self) -> Watermark:
        assert self.settings.watermark is not None, "asked only where it is on"
        return self.settings.watermark.build()

    @cached_property
    def _signer(self) -> Signer:
        assert self.settings.c2pa is not None, "asked only where it is on"
        return Signer(Signing(self.settings.c2pa))


def refused(applied: Applied) -> bool:
    """Whether the filter refused the picture: no file of it may be written."""
    return bool(applied.get("filter", {}).get("action") == "refuse")
