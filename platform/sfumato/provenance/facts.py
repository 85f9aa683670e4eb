"""What is known about pictures when they leave: who made them, and what was asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfumato.core.validation import first_problem
from sfumato.errors import CheckpointError
from sfumato.provenance.config import ProvenanceSettings

FILE = "provenance.json"


@dataclass(frozen=True, slots=True)
class Maker:
    """The model behind pictures: its name, the sha256 of its card, its recipe's digest; empty: unknown."""

    model: str = ""
    model_digest: str = ""
    recipe_digest: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one picture was made from.

    `texts` are its prompts by the name of the condition. `sources` are pictures that it was made from: it
    counts as an edit of the first.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    index: int | None = None
    sources: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Provenance:
    """A recipe's block and its digest, as they travel with a model."""

    settings: ProvenanceSettings = field(default_factory=ProvenanceSettings)
    recipe_digest: str = ""

    @property
    def on(self) -> bool:
        """Whether anything differs from the defaults."""
        return self.settings != ProvenanceSettings()


def write_provenance(folder: str | os.PathLike[str], provenance: Provenance | None) -> None:
    """Store it in a model folder, in place of an older one; nothing is stored if it is off.

    It has its own file, outside the model's digest: other marks make no other model.
    """
    place = Path(folder) / FILE
    if provenance is None or not provenance.on:
        place.unlink(missing_ok=True)
        return
    settings = provenance.settings.model_dump(mode="json")
    content = {"settings": settings, "recipe_digest": provenance.recipe_digest}
    place.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def read_provenance(folder: str | os.PathLike[str]) -> Provenance:
    """What is stored in a model folder; off if nothing is.

    Raises CheckpointError: damaged, so that nobody samples without marks by accident.
    """
    place = Path(folder) / FILE
    if not place.is_file():
        return Provenance()
    try:
        content: Any = json.loads(place.read_text("utf-8"))
        settings = ProvenanceSettings.model_validate(content["settings"])
        return Provenance(settings, str(content.get("recipe_digest", "")))
    except ValidationError as error:
        problem = first_problem(error, ProvenanceSettings)
        raise CheckpointError(f"{place} asks for marks that this version cannot set: {problem}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{place} is damaged ({error}); copy the model again") from None
