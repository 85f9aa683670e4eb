"""Adapters: networks of which only some tensors train, on a base that does not change."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sfumato.core.stored import matches
from sfumato.errors import CapabilityError


@dataclass(frozen=True, slots=True)
class Base:
    """The part of a trainable network that does not train: all tensors that match no `adapter` pattern."""

    adapter: Sequence[str]
    stored: bool
    """Whether the base can be loaded again from its source, so that an export leaves it out."""

    def has(self, key: str) -> bool:
        """Whether the tensor of this name belongs to the base."""
        return not matches(key, self.adapter)

    def freeze(self, name: str, module: nn.Module) -> None:
        """Keep gradients only for the adapter, in place. Raises CapabilityError for an unmatched pattern."""
        keys = [key for key, _ in _tensors(module)]
        for pattern in self.adapter:
            if not any(matches(key, (pattern,)) for key in keys):
                raise CapabilityError(
                    f"network {name!r} has no tensor {pattern!r}, which its family names as its adapter"
                )
        for key, parameter in module.named_parameters():
            parameter.requires_grad_(not self.has(key))

    def copy(self, module: nn.Module) -> nn.Module:
        """A copy that shares the base's tensors with the network."""
        return copy.deepcopy(
            module, {id(tensor): tensor for key, tensor in _tensors(module) if self.has(key)}
        )

    def trained_parts(self, module: nn.Module) -> list[nn.Module]:
        """The modules that switch to train mode: those that hold a tensor of the adapter, those without own
        tensors that contain only the adapter's, and tensorless modules inside these (dropout). All others
        belong to the base."""
        return list(self._parts(module, "", inherited=False))

    def _parts(self, module: nn.Module, prefix: str, *, inherited: bool) -> Iterator[nn.Module]:
        own = [self.has(f"{prefix}{key}") for key, _ in _tensors(module, recurse=False)]
        inside = [self.has(f"{prefix}{key}") for key, _ in _tensors(module)]
        trains = not all(own) if own else not any(inside) if inside else inherited
        if trains:
            yield module
        for name, child in module.named_children():
            yield from self._parts(child, f"{prefix}{name}.", inherited=trains)


def _tensors(module: nn.Module, *, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    # All names of a tensor that has several, so that it belongs to the base only if all of them do.
    yield from module.named_parameters(recurse=recurse, remove_duplicate=False)
    yield from module.named_buffers(recurse=recurse, remove_duplicate=False)
