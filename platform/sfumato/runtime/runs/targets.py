"""What `sfumato evaluate` may be given: a recipe, a run, a checkpoint, a model folder, or images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sfumato.data.format.manifest import FILE as MANIFEST
from sfumato.runtime.runs.resolve import folder_of_checkpoint, run_folder_of
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.sampling.model_folder import CARD

Kind = Literal["recipe", "run", "checkpoint", "model", "images"]
RECIPE = "recipe.yaml"


@dataclass(frozen=True, slots=True)
class Target:
    """What a word on the command line means, and a line that says so."""

    kind: Kind
    place: str
    about: str
    run: RunFolder | None = None
    """The run that a `run` or `checkpoint` belongs to."""

    @property
    def recipe(self) -> Path | None:
        """The recipe that says how it is evaluated, where there is one."""
        if self.kind == "recipe":
            return Path(self.place)
        return None if self.run is None else self.run.path / RECIPE


def target_of(word: str, *, root: Path) -> Target:
    """The target. Raises ConfigError where nothing goes by that name, CheckpointError for half a run."""
    path = Path(word)
    if path.suffix in (".yaml", ".yml"):
        return Target("recipe", word, f"recipe {word}")
    if (path / CARD).is_file():
        return Target("model", word, f"model {word}")
    if path.name.startswith("images-") and (path / MANIFEST).is_file():
        return Target("checkpoint", str(path), f"checkpoint {path}", folder_of_checkpoint(path, root))
    if "://" in word or word == "digits" or (path.exists() and not (path / "run.json").is_file()):
        return Target("images", word, f"images {word}")
    folder, about = run_folder_of(word, root=root)
    return Target("run", word, about, folder)
