"""The interface of feature extractors, which turn images into vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.evaluation.progress import Begin, ProgressCallback, silent
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import Float32Array, UInt8Array


@dataclass(frozen=True, slots=True)
class Extracted:
    """`embedding_ND` float32; `logits_NK` float32 when the extractor classifies the data's classes."""

    embedding_ND: Float32Array
    logits_NK: Float32Array | None = None


class Extractor(Protocol):
    """A loaded network with its transform. It is sent to the workers, so it must be picklable.

    `digest` identifies the weights and the transform: features of equal digests may be compared and
    cached. `facts` are plain JSON values for the report.
    """

    name: str
    dim: int
    digest: str
    facts: Mapping[str, object]

    def extract(self, images_NHWC: UInt8Array) -> Extracted:
        """Features of uint8 images [N, H, W, C]; row i depends only on image i."""
        ...


@runtime_checkable
class ReadsCaptions(Protocol):
    """An extractor that brings texts into the space of its images."""

    def extract_text(self, captions: Sequence[str]) -> Float32Array:
        """Embeddings [N, dim]."""
        ...


class FeatureKind(Protocol):
    """A kind of features, before anything is loaded. Files in this folder list theirs in `FEATURES`.

    `classifies`: its extractor gives logits of the data's own classes; `gives_logits`: it gives
    logits of any classes.
    """

    name: str
    classifies: bool
    gives_logits: bool
    options: type[Config]

    def problems(self, data: DataSpec) -> list[str]:
        """Why it is unavailable for this data on this machine; one line each, with the fix."""
        ...

    def build(self, reference: Reference, options: Config, cache: Path) -> Extractor:
        """The extractor, built once by the driver; costly results are kept under `cache`."""
        ...


@runtime_checkable
class HasDimension(Protocol):
    """A kind whose vectors have a length that is known before anything is loaded."""

    def dimension(self, options: Config, data: DataSpec) -> int | None:
        """It; None if these options leave it open."""
        ...


@runtime_checkable
class Trains(Protocol):
    """A kind of features that takes a while to build, and reports how far it is."""

    def train(
        self, reference: Reference, options: Config, cache: Path, progress: ProgressCallback
    ) -> Extractor:
        """As `FeatureKind.build`. `progress` counts images seen."""
        ...


def built(
    kind: FeatureKind,
    reference: Reference,
    options: Config,
    cache: Path,
    begin: Begin = silent,
) -> Extractor:
    """The extractor of a kind. If it takes a while, `begin` is told what begins, and returns whom to tell how
    far it is."""
    if isinstance(kind, Trains):
        return kind.train(reference, options, cache, begin(f"training {kind.name}"))
    return kind.build(reference, options, cache)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on a single thread: the order of float additions, and so the last bits, never varies."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


CHUNK = 64


def device() -> torch.device:
    """Where networks run in this process: on its assigned GPU, otherwise on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_placed: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def placed(network: nn.Module) -> nn.Module:
    """The network on `device()`. The original stays on the CPU: its extractor can be sent anywhere."""
    if device().type == "cpu":
        return network
    if network not in _placed:
        _placed[network] = copy.deepcopy(network).to(device())
    return _placed[network]


@contextmanager
def exact_float32() -> Iterator[None]:
    """GPUs multiply float32 as float32: TF32 would move features in the fourth digit."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def extract_in_chunks(
    images_NHWC: UInt8Array, forward: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> Extracted:
    """Runs `forward` (float32 [B, C, H, W] in 0..255 -> embedding, logits) over chunks of fixed size."""
    embeddings: list[Float32Array] = []
    logits: list[Float32Array] = []
    with one_thread(), exact_float32(), torch.inference_mode():
        for start in range(0, len(images_NHWC), CHUNK):
            images = torch.from_numpy(np.ascontiguousarray(images_NHWC[start : start + CHUNK]))
            embedding_BD, logits_BK = forward(images.to(device()).permute(0, 3, 1, 2).float())
            embeddings.append(embedding_BD.float().cpu().numpy())
            if logits_BK is not None:
                logits.append(logits_BK.float().cpu().numpy())
    return Extracted(np.concatenate(embeddings), np.concatenate(logits) if logits else None)
