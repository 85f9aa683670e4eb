"""Stored weights of known content, and the network that others may take them for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's dotted name matches one of the patterns (`*.lora_*`)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Stored weights of known content, and how they fit the network that takes them."""

    digest: str
    into: str = ""
    """The part of the network that takes them, by its dotted name; empty for the network itself."""
    fresh: tuple[str, ...] = ()
    """Patterns over names of the network's tensors that may be absent and then keep what `build` gave."""
    unused: tuple[str, ...] = ()
    """Patterns over names of stored tensors that are left out."""

    @property
    def place(self) -> str:
        """The folder or file that they are in."""
        raise AssertionError("every kind has its own")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNet(Weights):
    """A network of a model folder; `digest` is the folder's."""

    folder: str
    network: str

    @property
    def place(self) -> str:
        return self.folder


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFolder(Weights):
    """A folder of diffusers or transformers; `digest` covers its config.json and its safetensors files."""

    folder: str

    @property
    def place(self) -> str:
        return self.folder


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile(Weights):
    """One safetensors file with the sha256 `digest`; of its tensors those whose names start with `prefix`,
    which is cut off."""

    file: str
    prefix: str = ""

    @property
    def place(self) -> str:
        return self.file


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """What a family says of the network that others may use as a first stage."""

    network: str
    """Its name among the family's networks, and so the weights' name in a model folder."""
    build: Callable[[], nn.Module]
    """Makes it, with weights that are yet to be loaded; a `FirstStage`, or a `Tokenizer` with codes."""
    latent: tuple[int, int, int]
    """(C, h, w) of its latents."""
    num_codes: int = 0
    """How many codes there are; 0 where it has none."""
