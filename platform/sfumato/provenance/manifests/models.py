"""Manifests of models: a signed file NAME.c2pa beside each file of a model folder that decides what it draws.

It binds the bytes of its file (C2PA's data hash) and says which model they belong to. It is not written into
the safetensors, as C2PA 2.4 also allows: that would change the checksum by which the model's card knows
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.errors import DataError
from sfumato.provenance.manifests.reading import Outcome, Shown, failed, readable, shown
from sfumato.provenance.manifests.signed import Signer
from sfumato.version import __version__

SUFFIX = ".c2pa"
MODEL = "org.sfumato.model"
"""Label of the assertion about the model."""
SIGNED = ("*.safetensors", "config.json")
"""The files of a model folder that have manifests."""
_TYPE = "application/octet-stream"
_WORST: tuple[Outcome, ...] = (
    "tampered",
    "damaged",
    "invalid",
    "expired",
    "unsigned",
    "untrusted",
    "trusted",
)


def files_of(folder: Path) -> list[Path]:
    """The files of a model folder that are signed."""
    return sorted(file for pattern in SIGNED for file in folder.glob(pattern))


def sign_model(folder: Path, signer: Signer, about: Mapping[str, Any]) -> list[Path]:
    """Write the manifests of a model folder, in place of older ones; returns their files.

    `about` says what the model is. Raises SfumatoError: the key or its service failed.
    """
    written = []
    for file in files_of(folder):
        definition = {
            "claim_generator_info": [{"name": "Sfumato", "version": __version__}],
            "title": file.name,
            "assertions": [
                {
                    "label": MODEL,
                    "data": {key: value for key, value in about.items() if value not in (None, "")},
                }
            ],
        }
        place = file.with_name(file.name + SUFFIX)
        with file.open("rb") as stream:
            partial = place.with_suffix(".part")
            partial.write_bytes(signer.beside(stream, _TYPE, definition))
        partial.replace(place)
        written.append(place)
    return written


def read_model(place: Path, trust: Path | None = None) -> list[tuple[str, Shown]]:
    """The outcome of each file of a model folder, or of the one file; nothing is fetched from the network.

    Raises DataError: no model there, or no certificate in `trust`.
    """
    files = files_of(place) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise DataError(f"{place}: no model folder, and no file of one")
    return [(file.name, _read(file, trust)) for file in files]


def worst(found: list[tuple[str, Shown]]) -> Outcome:
    """The outcome of a model: that of its worst file."""
    return min((one.outcome for _, one in found), key=_WORST.index)


def _read(file: Path, trust: Path | None) -> Shown:
    from c2pa import C2paError, Reader

    context = readable(trust)
    beside = file.with_name(file.name + SUFFIX)
    if not beside.is_file():
        return Shown("unsigned")
    try:
        with file.open("rb") as stream, Reader(_TYPE, stream, beside.read_bytes(), context=context) as reader:
            found = json.loads(reader.json())
    except C2paError as error:
        return failed(error)
    return replace(shown(found, MODEL), source_type="")
