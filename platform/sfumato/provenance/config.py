"""The recipe's `provenance:` block. Without it, pictures leave as they were drawn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sfumato.core.config import Config

Mark = Literal["metadata"]


class ProvenanceSettings(Config):
    """What is done to every generated picture before it leaves."""

    metadata: bool = Field(
        False, description="Write XMP: IPTC digital source type, the model, and the recipe's digest."
    )
    prompt: bool = Field(
        False, description="Whether a prompt may be written into the picture, where anybody can read it."
    )
    require: tuple[Mark, ...] = Field(
        (), description="Marks without which no picture may leave; a command that cannot set them refuses."
    )

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The marks that are on."""
        return ("metadata",) if self.metadata else ()

    def problems(self) -> list[str]:
        """What contradicts itself, one line each."""
        return [
            f"provenance.require: {mark} is required but off; add provenance.{mark}, or leave it out"
            for mark in self.require
            if mark not in self.marks
        ]
