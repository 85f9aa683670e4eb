"""A recipe's `provenance:` block in a model folder, so that it travels with the model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfumato.core.finding import ALLOW, built_in_only
from sfumato.core.validation import first_problem
from sfumato.errors import CheckpointError, ConfigError
from sfumato.provenance.config import ProvenanceSettings

FILE = "provenance.json"


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


def read_provenance(folder: str | os.PathLike[str], *, trust: bool = False) -> Provenance:
    """What is stored in a model folder; off if nothing is.

    `trust` allows it to name a signer, or any other class or function, by import path, which runs code.

    Raises:
        CheckpointError: damaged, so that nobody samples without marks by accident.
        ConfigError: an import path that is not trusted.
    """
    place = Path(folder) / FILE
    if not place.is_file():
        return Provenance()
    try:
        content: Any = json.loads(place.read_text("utf-8"))
        with built_in_only(not trust):
            settings = ProvenanceSettings.model_validate(content["settings"])
        if settings.c2pa is not None and settings.c2pa.signer is not None and not trust:
            raise ConfigError(
                f"{place} needs the signer {settings.c2pa.signer!r}; calling it runs its code: {ALLOW}"
            )
        mark = settings.watermark
        if mark is not None and mark.runs_code and not trust:
            raise ConfigError(
                f"{place} needs the watermark {mark.kind!r}, which is {mark.runs_code}; loading it runs its "
                f"code: {ALLOW}"
            )
        return Provenance(settings, str(content.get("recipe_digest", "")))
    except ValidationError as error:
        problem = first_problem(error, ProvenanceSettings)
        raise CheckpointError(f"{place} asks for marks that this version cannot set: {problem}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{place} is damaged ({error}); copy the model again") from None
