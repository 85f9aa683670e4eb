"""Finding the members of a folder: every module in it is imported, and lists its members in one tuple.

A module that fails to import fails here, loudly: nothing is skipped. Optional packages are therefore
imported inside the functions that need them, and reported by `problems`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Protocol, TypeVar


class Named(Protocol):
    """Anything with a name."""

    name: str


M = TypeVar("M", bound=Named)


def discover(package: ModuleType, attribute: str) -> dict[str, M]:
    """Members by name, from the tuple called `attribute` in each module of `package`."""
    found: dict[str, M] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for member in getattr(module, attribute, ()):
            if member.name in found:
                raise ValueError(f"{package.__name__} has two members called {member.name!r}")
            found[member.name] = member
    return found


def unknown_names(field: str, names: Iterable[str], known: Mapping[str, object]) -> list[str]:
    """One line for every name that is not known, with the nearest one that is."""
    problems = []
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        problems.append(f"{field}: no {name!r}; {hint}known: {', '.join(known)}")
    return problems
