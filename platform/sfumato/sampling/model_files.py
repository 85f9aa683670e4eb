"""The files of a model folder: its card and its weights, checked by their checksums.

`model_folder.py` knows what they mean, which family with which configuration. The training loop,
which names no family, reads the weights that networks start from with `pretrained_files.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sfumato.core.drafts import writing
from sfumato.errors import CheckpointError

FORMAT = 1
CARD = "config.json"


def write_weights(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write a state dict; returns the file's sha256."""
    # Copies, since safetensors refuses tensors that share memory.
    content = save_tensors({key: value.detach().cpu().contiguous().clone() for key, value in state.items()})
    with writing(path):
        path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    """A state dict from a file with this sha256. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; export or copy the model again")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{path} is damaged: its sha256 is {found[:12]}, the card gives {expected[:12]}; copy it again"
        )
    return load_tensors(content)


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """A model folder's card, with all fields present and of the right types, and the folder's digest.

    Raises CheckpointError: not a model folder, an unknown format, or damaged.
    """
    file = path / CARD
    if not file.is_file():
        raise CheckpointError(f"{path} is not a model folder: it has no {CARD}")
    content = file.read_bytes()
    try:
        card = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); copy the model again") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise CheckpointError(f"{file} has format {found!r}; this version of Sfumato reads format {FORMAT}")
    wanted = {"name": str, "family": str, "config": dict, "data": dict, "images": int, "notes": dict}
    for key, kind in {**wanted, "weights_sha256": dict}.items():
        if not isinstance(card.get(key), kind):
            raise CheckpointError(f"{file} is damaged: field {key!r} is missing or not a {kind.__name__}")
    if not isinstance(card.get("bases", {}), dict):
        raise CheckpointError(f"{file} is damaged: field 'bases' is not a dict")
    return card, hashlib.sha256(content).hexdigest()
