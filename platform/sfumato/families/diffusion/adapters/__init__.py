"""What trains on a pretrained network, where that is not the whole of it. A file here is a way to adapt.

An adapter trains, averages, checkpoints and exports its own tensors alone; a model folder names the base by
its place and digest (`core.family.Trainable`). Patterns match dotted names as shells match files: `*` is
anything, and a pattern may begin in the middle of a name.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.conditions import Condition
from sfumato.core.stored import matches


class AdapterFiles(Protocol):
    """An adapter that diffusers loads onto its base."""

    def write(self, folder: Path, name: str) -> None:
        """Write them into a new folder; `name` is that of the run."""
        ...


class AdapterConfig(Component, ABC):
    """Settings of an adapter."""

    inside: ClassVar[str] = ""
    """The name under which a wrapped module holds the module of the base, if it wraps any."""

    @abstractmethod
    def trained(self) -> tuple[str, ...]:
        """Patterns over the names of the tensors that train."""

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """What steers the images besides the base's own conditions."""
        return ()

    def inputs(self, rows: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the network gets besides texts, of a batch or of conditions by the names of their columns."""
        return {}

    def data_problems(self, data: DataSpec) -> list[str]:
        """What the data lacks for it, one line each."""
        return []

    def added(self, network: nn.Module) -> nn.Module:
        """The network with what it adds, in place; weights are drawn from torch's global generator."""
        return network

    @abstractmethod
    def problems(self, network: nn.Module) -> list[str]:
        """Why it cannot adapt this network, which may be on the meta device, one line each."""

    @property
    def begins(self) -> bool:
        """Whether `begin` has something to do."""
        return False

    def begin(self, network: nn.Module) -> None:
        """What depends on the base's loaded weights or on a file, before the first step, in place."""

    def files(self, network: nn.Module, base: str) -> AdapterFiles | None:
        """The adapter in the ecosystem's own form, for exports; None: exports are whole models."""
        return None


ADAPTERS: Components[AdapterConfig] = Components("sfumato.families.diffusion.adapters", AdapterConfig)


def anywhere(patterns: Iterable[str]) -> tuple[str, ...]:
    """Patterns that may begin in the middle of a name, after a dot."""
    return tuple(pattern if pattern.startswith("*") else f"*.{pattern}" for pattern in patterns)


def unmatched(patterns: Sequence[str], names: Sequence[str], field: str) -> list[str]:
    """One line for each pattern that matches none of the names, with those that are nearest."""
    lines = []
    for pattern in patterns:
        if any(matches(f".{name}", anywhere([pattern])) for name in names):
            continue
        near = difflib.get_close_matches(pattern.replace("*", ""), names, n=3, cutoff=0.0)
        lines.append(f"{field}: nothing matches {pattern!r}; nearest are {', '.join(near)}")
    return lines
