"""Puts a signed manifest into a picture's file: the action, its source type, the model, the ingredients.

The library salts what it hashes and ECDSA draws a number for every signature, so two files with a manifest
differ even where their pixels are equal.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sfumato.errors import ConfigError, DataError, SfumatoError
from sfumato.provenance.facts import Facts, Maker
from sfumato.provenance.manifests.signing import Signing
from sfumato.provenance.metadata import COMPOSITE, said, whole
from sfumato.version import __version__

GENERATION = "org.sfumato.generation"
"""Label of the assertion about the model."""
LIBRARY: dict[str, Any] = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}
"""Settings of the library: no thumbnails, and nothing is fetched from an address that a picture names."""


class Signer:
    """Signs files with one chain. One may sign any number of pictures."""

    def __init__(self, signing: Signing) -> None:
        from c2pa import C2paError, C2paSigningAlg, Context, Settings
        from c2pa import Signer as LibrarySigner

        self._signing = signing
        algorithm = getattr(C2paSigningAlg, signing.algorithm)
        try:
            self._context = Context(Settings.from_dict(LIBRARY))
            self._signer = LibrarySigner.from_callback(
                signing.sign, algorithm, signing.chain, signing.settings.timestamp
            )
        except C2paError as error:
            raise ConfigError(f"provenance.c2pa.certificate: {_reason(error)}") from None

    def signed(self, content: bytes, mime: str, maker: Maker, facts: Facts, *, prompt: bool) -> bytes:
        """The file with a manifest; `content` has none yet.

        Raises:
            DataError: a source that is no picture.
            SfumatoError: the key, its service or the time-stamping authority failed.
        """
        signed = io.BytesIO()
        with self._building(manifest(maker, facts, prompt=prompt), "a picture") as builder:
            _begin(builder, facts)
            builder.sign(self._signer, mime, io.BytesIO(content), signed)
        return signed.getvalue()

    def beside(self, content: BinaryIO, mime: str, definition: Mapping[str, Any]) -> bytes:
        """The manifest of a file of any kind, which is to be kept beside it.

        Raises SfumatoError: the key, its service or the time-stamping authority failed.
        """
        from c2pa import C2paBuilderIntent, C2paDigitalSourceType

        with self._building(definition, str(definition["title"])) as builder:
            builder.set_no_embed()
            builder.set_intent(C2paBuilderIntent.CREATE, C2paDigitalSourceType.TRAINED_ALGORITHMIC_DATA)
            return bytes(builder.sign(self._signer, mime, content, _Nowhere()))

    @contextmanager
    def _building(self, definition: Mapping[str, Any], what: str) -> Iterator[Any]:
        from c2pa import Builder, C2paError

        self._signing.forget()
        try:
            with Builder(json.dumps(definition), self._context) as builder:
                yield builder
        except C2paError as error:
            cause = self._signing.failure
            reason = f"{type(cause).__name__}: {cause}" if cause else _reason(error)
            raise SfumatoError(f"{what} could not be signed: {' '.join(reason.split())}") from cause


class _Nowhere(io.RawIOBase):
    """Takes the copy of a file that the library writes even where its manifest stays outside."""

    def __init__(self) -> None:
        self._at = self._end = 0

    def write(self, content: Any) -> int:
        """Counted alone."""
        self._at += len(content)
        self._end = max(self._end, self._at)
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As in a file."""
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        """As in a file."""
        return self._at

    def seekable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def readable(self) -> bool:
        """It is not."""
        return False


def manifest(maker: Maker, facts: Facts, *, prompt: bool) -> dict[str, Any]:
    """The definition of a manifest, as the library takes it. Values are data: they cannot add a field."""
    about = {
        "model": maker.model,
        "model_card_sha256": maker.model_digest,
        "recipe_digest": maker.recipe_digest,
        "seed": facts.seed,
        "index": facts.index,
        "prompt": said(facts) if prompt else None,
    }
    known = {
        key: whole(value) if isinstance(value, str) else value
        for key, value in about.items()
        if value not in (None, "")
    }
    return {
        "claim_generator_info": [{"name": "Sfumato", "version": __version__}],
        "title": whole(maker.model) or "a generated picture",
        "assertions": [{"label": GENERATION, "data": known}],
    }


def _begin(builder: Any, facts: Facts) -> None:
    """The first action: created, or opened from the first source and edited; the others are components."""
    from c2pa import C2paBuilderIntent, C2paDigitalSourceType

    agent = {"name": "Sfumato", "version": __version__}
    if not facts.sources:
        builder.set_intent(C2paBuilderIntent.CREATE, C2paDigitalSourceType.TRAINED_ALGORITHMIC_MEDIA)
        return
    builder.set_intent(C2paBuilderIntent.EDIT)
    for number, source in enumerate(facts.sources):
        _add(builder, source, "componentOf" if number else "parentOf")
    builder.add_action({"action": "c2pa.edited", "digitalSourceType": COMPOSITE, "softwareAgent": agent})


def _add(builder: Any, source: Path, relation: str) -> None:
    """A source as ingredient, with its own manifest and whatever is wrong with that."""
    from PIL import Image, UnidentifiedImageError

    try:
        content = source.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            mime = Image.MIME.get(picture.format or "", "")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{source} is no picture that could be named as a source: {error}") from None
    ingredient = json.dumps({"title": source.name, "relationship": relation})
    builder.add_ingredient(ingredient, mime, io.BytesIO(content))


def _reason(error: Exception) -> str:
    """The library's message without its kind, on one line."""
    return " ".join(str(error).split()).partition(": ")[2] or str(error)
