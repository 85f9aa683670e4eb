"""Pictures as the bytes of a file: PNG, JPEG or WebP, with XMP if there is any."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image, PngImagePlugin

from sfumato.errors import ConfigError

Format = Literal["png", "jpeg", "webp"]
SUFFIXES: dict[Format, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
MIME: dict[Format, str] = {kind: f"image/{kind}" for kind in SUFFIXES}
QUALITY = 95
"""Of JPEG and WebP; chroma is not subsampled in JPEG."""
_XMP_CHUNK = "XML:com.adobe.xmp"


def animated(pictures: Sequence[Image.Image], milliseconds: int, xmp: bytes | None = None) -> bytes:
    """A lossless animated WebP of the pictures, each shown for so long; after the last comes the first."""
    out, first = io.BytesIO(), pictures[0]
    options: dict[str, Any] = {} if xmp is None else {"xmp": xmp}
    others = list(pictures[1:])
    first.save(
        out,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=milliseconds,
        loop=0,
        lossless=True,
        **options,
    )
    return out.getvalue()


def encoded(picture: Image.Image, kind: Format = "png", xmp: bytes | None = None) -> bytes:
    """The file's bytes: the same picture gives the same under one version of Pillow.

    Raises ConfigError for transparency in a JPEG.
    """
    out = io.BytesIO()
    options: dict[str, Any] = {}
    if kind == "png" and xmp is not None:
        options["pnginfo"] = chunk = PngImagePlugin.PngInfo()
        chunk.add_itxt(_XMP_CHUNK, xmp.decode())
    elif kind != "png":
        options["quality"] = QUALITY
        if xmp is not None:
            options["xmp"] = xmp
    if kind == "jpeg":
        options["subsampling"] = 0
        if "A" in picture.getbands():
            raise ConfigError("JPEG has no transparency, which these images have; choose png or webp")
    picture.save(out, kind.upper(), **options)
    return out.getvalue()
