"""Stored weights of known content, and the network that other models may load them into."""

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
    """Stored weights of known content, and how they map to the network that loads them."""

    digest: str
    into: str = ""
    """The part of the network that loads them, by its dotted name; empty for the whole network."""
    fresh: tuple[str, ...] = ()
    """Patterns over names of the network's tensors that may be absent; these keep their built values."""
    unused: tuple[str, ...] = ()
    """Patterns over names of stored tensors to ignore."""
    inside: str = ""
    """The name under which the network's wrapped modules hold the stored ones: where it has no `a.weight`,
    that is its `a.<inside>.weight`."""
    also: tuple[Weights, ...] = ()
    """Further places, each of which holds another part of the network."""

    @property
    def place(self) -> str:
        """The folder or file that holds them."""
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
    """One safetensors file with the sha256 `digest`. Only tensors whose names start with `prefix` are used,
    and it is stripped from their names."""

    file: str
    prefix: str = ""

    @property
    def place(self) -> str:
        return self.file


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """A family's description of the network that other models may use as a first stage."""

    network: str
    """Its name among the family's networks, and therefore the weights' name in a model folder."""
    build: Callable[[], nn.Module]
    """Builds it, before its weights are loaded: a `FirstStage`, or a `Tokenizer` if it has codes."""
    latent: tuple[int, int, int]
    """(C, h, w) of its latents."""
    num_codes: int = 0
    """The number of codes; 0 if it has none."""
    scales: tuple[int, ...] = ()
    """The sides of its grids of codes, of a `ScaleTokenizer`."""
    scale_codes: int = 0
    """The number of codes that these share."""
    weights: Weights | None = None
    """Where its weights are, if not in the folder of the run that describes it."""
    any_size: bool = False
    """Whether it takes images of other sizes than those it was described for."""
