"""What is known about pictures when they leave: who made them, and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


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
