"""The recipe of the tests that train a whole run: the smallest flow, on the packed digits.

A flow needs torch alone: every process of a run that loads diffusers takes seconds more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sfumato.core.family import FamilyConfig
from sfumato.families.flow import Config

LIKE_REFERENCE = {"optimizer": {"eps": 1e-5}}
"""What makes the model the one that the plain processes of tests/support/train_rank.py train."""


def tiny_recipe(data: str | Path, /, *, family: type[FamilyConfig] = Config, **parts: Any) -> dict[str, Any]:
    """The recipe as plain data; `parts` name fields, which are laid over those that are here."""
    content = {
        "name": "tiny",
        "seed": 3,
        "storage": "runs",
        "data": {"path": str(data), "streams": 8, "shuffle_window": 100},
        "model": family.tiny().model_dump(mode="json"),
        "train": {"batch": 128, "log_every": 1_000, "preview_samples": 0},
        "parallel": {"workers": 1, "threads_per_worker": 1},
        "tracking": {"system_metrics": False},
    }
    return laid_over(content, parts)


def write_tiny_recipe(folder: Path, data: str | Path, /, **parts: Any) -> Path:
    """`tiny.yaml` in the folder."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(data, **parts)))
    return path


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both trees of fields, with the values of `above` where both have one."""
    found = dict(below)
    for key, value in above.items():
        inner = found.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        found[key] = laid_over(inner, value) if both else value
    return found
