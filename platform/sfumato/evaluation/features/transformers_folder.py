"""Weights in a folder in the format of transformers. Nothing is downloaded, nothing unpickled."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from sfumato.errors import CapabilityError, with_extra


def folder_given(features: str, variable: str, given: Path | None, example: str) -> Path:
    """A folder in the format that transformers saves: config.json and model.safetensors.

    Raises CapabilityError, in one line with the fix, if there is none.
    """
    mend = (
        f"set evaluate.feature_options.{features}.weights=FOLDER or {variable}=FOLDER to a folder with "
        f"config.json and model.safetensors, for example of {example}"
    )
    folder = given or (Path(value) if (value := os.environ.get(variable)) else None)
    if folder is None:
        raise CapabilityError(f"features {features} needs weights, none given; {mend}")
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise CapabilityError(
            f"features {features}: {str(folder)!r} has no {' and no '.join(missing)}; {mend}"
        )
    return folder


def transformers_problems(features: str) -> list[str]:
    """A line if the package transformers is missing."""
    if importlib.util.find_spec("transformers") is not None:
        return []
    return [f"features {features} needs transformers, not installed: {with_extra('features')}"]


def load_folder(model: Any, folder: Path, features: str) -> Any:
    """A model of transformers from a folder. Raises CapabilityError if any weight is missing."""
    try:
        network, report = model.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CapabilityError(
            f"features {features}: {folder} cannot be loaded ({str(error).splitlines()[0]})"
        ) from error
    if report["missing_keys"]:
        raise CapabilityError(
            f"features {features}: {folder} lacks weights of {model.__name__}, for example "
            f"{sorted(report['missing_keys'])[0]}: is it another model's folder?"
        )
    return network
