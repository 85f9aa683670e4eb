"""Puts a card next to a model, in both forms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.core.drafts import write_whole
from sfumato.runtime.card.facts import facts_of
from sfumato.runtime.card.markdown import text_of
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.runs.targets import Found

TEXT, DATA = "README.md", "card.json"


def write_card(folder: RunFolder) -> dict[str, Any]:
    """Write the card of a run into its folder `card` and into its model's; returns the facts.

    Raises CheckpointError for a run without a model.
    """
    facts = facts_of(folder)
    for place in (folder.path / "card", folder.model):
        put_card(facts, place)
    return facts


def put_card(facts: Mapping[str, Any], place: Path) -> None:
    """Write both forms of a card into a folder, each whole or not at all."""
    place.mkdir(parents=True, exist_ok=True)
    data = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    for name, text in ((TEXT, text_of(facts)), (DATA, data)):
        write_whole(place / name, text.encode())


def export_card(found: Found, dest: Path) -> None:
    """Put the card of a model into the folder that it is exported to.

    It is written anew where the model's run is here with its recipe; otherwise the model folder's own, if
    any, is copied.
    """
    if found.run is not None and (found.run.path / "recipe.yaml").is_file():
        put_card(facts_of(found.run, found.model), dest)
        return
    for name in (TEXT, DATA):
        if (found.model / name).is_file() and not (dest / name).exists():
            shutil.copyfile(found.model / name, dest / name)
