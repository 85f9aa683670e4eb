"""A command that is submitted: what the cluster needs to know of it, and what it needs of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sfumato.runtime.cluster.use import Use


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command as it will be given on the cluster: its name, `file` if it has one, arguments."""

    name: str
    said: str
    """As it was typed, for people."""
    file: str | None = None
    """The recipe or pipeline, by its name in the package's folder of recipes."""
    arguments: tuple[str, ...] = ()
    title: str
    """The name of what it works on, and `digest`, which tells equal works."""
    digest: str
    uses: tuple[Use, ...] = ()
    """What it asks of the cluster, stage by stage."""
    relative: tuple[str, ...] = ()
    """The fields that name places relative to the project's folder, as field=value."""
    modules: tuple[str, ...] = ()
    """The modules of families and components that its recipes name by import path."""
    tracking: str | None = None
    """The URI of the MLflow server that records it."""
    files: Callable[[], Mapping[str, str]] = field(default=dict, compare=False)
    """Reads the recipes to send, by name. Raises ConfigError for one that must not leave this machine."""

    def __str__(self) -> str:
        return self.said

    @property
    def run(self) -> str:
        """A name of what it computes; a second job on it is refused while the first lives."""
        return f"{self.title}-{self.digest[:8]}"

    @property
    def fresh(self) -> bool:
        return "--fresh" in self.arguments


@dataclass(frozen=True)
class Words:
    """A command's words, told apart."""

    name: str
    plain: tuple[str, ...]
    flags: tuple[str, ...]
    """Options as they are given on, those with a value as two words."""
    values: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join([self.name, *self.plain, *self.flags])
