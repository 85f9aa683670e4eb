"""Pipelines of diffusers, described by the JSON files of their folder. No code in a folder is run."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfumato.core.pretrained_model import PARTS, LibraryPipeline
from sfumato.core.validation import first_problem
from sfumato.errors import ConfigError

INDEX = "model_index.json"
_KEPT = {
    "scheduler_config.json": None,
    "tokenizer_config.json": ("model_max_length",),
    "config.json": ("block_out_channels",),
}
"""What is kept of a part: of a scheduler all, of tokenizers and networks what pipelines need to know."""


def described(folder: Path) -> tuple[LibraryPipeline, str]:
    """The pipeline in a folder, and the name of the part that denoises.

    Raises ConfigError, in one line, for any other folder.
    """
    if not (folder / INDEX).is_file():
        what = "is not there" if not folder.is_dir() else f"has no {INDEX}"
        raise ConfigError(
            f"{folder} {what}; name the folder of a whole pipeline, as diffusers' save_pretrained writes it"
        )
    index = _read(folder / INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise ConfigError(f"{folder / INDEX} names no pipeline of diffusers; code in a folder is never run")
    parts = {
        part: _part(folder / part)
        for part, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None
    }
    denoiser = next((part for part in PARTS if part in parts), None)
    if denoiser is None:
        raise ConfigError(f"{folder}: its {name} has no part that denoises ({' or '.join(PARTS)})")
    try:
        return LibraryPipeline(name=name, parts=parts), denoiser
    except ValidationError as error:
        raise ConfigError(f"{folder / INDEX}: {first_problem(error, LibraryPipeline)}") from None


def _part(folder: Path) -> dict[str, Any]:
    """What is kept of the configuration of one part. Values that JSON does not know mean no limit."""
    for name, kept in _KEPT.items():
        if (folder / name).is_file():
            content = _read(folder / name)
            return {
                key: value
                for key, value in content.items()
                if (kept is None or key in kept) and not (isinstance(value, float) and not isfinite(value))
            }
    return {}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not valid JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is not the description of a pipeline; copy it again")
    return content
