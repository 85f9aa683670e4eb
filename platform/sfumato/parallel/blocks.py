"""The blocks of a network: the parts that are sharded, recomputed or compiled one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from sfumato.errors import CapabilityError


def blocks_of(module: nn.Module, patterns: Sequence[str] = ()) -> list[nn.Module]:
    """The submodules whose dotted name matches a pattern (`down_blocks.*`), outermost ones only.

    Without patterns: the entries of the outermost `ModuleList`s, which is how a network names a stack of
    equal parts. At least in training, a block must be used by calling it: strategies act around its
    `forward`.

    Raises CapabilityError for a pattern that nothing matches.
    """
    if not patterns:
        return [block for block in _entries(module) if any(True for _ in block.parameters())]
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        matches = {name: part for name, part in module.named_modules() if name and fnmatchcase(name, pattern)}
        if not matches:
            raise CapabilityError(
                f"{type(module).__name__} has no part {pattern!r}, which its family names as a block; "
                f"its parts are {', '.join(name for name, _ in module.named_children())}"
            )
        found |= matches
    return [part for name, part in found.items() if not any(name.startswith(f"{outer}.") for outer in found)]


def _entries(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            # An absent optional part may be None in the list, whatever its annotation.
            entries: list[nn.Module | None] = list(child)
            yield from (entry for entry in entries if entry is not None)
        else:
            yield from _entries(child)
