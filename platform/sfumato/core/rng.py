"""Randomness that depends on what is computed, never on which process computes it or on earlier draws.

Training noise is drawn per *stream* (one of the P logical sequences into which the data order is dealt).
Its generator is seeded by (seed, images, phase, stream), so any number of ranks and any division into
micro-batches draws the same numbers for the same sample, and a resumed run needs no generator state.
Sampling noise is drawn per *sample*: sample i depends only on (seed, i).

Of a seed's 63 bits, torch's generator uses all on CUDA and the lower 32 on the CPU, where sampling noise is
drawn. Expect n^2 / 2^33 pairs among n samples with the same noise: 0.3 among 50,000 and 116 among a million.
Any other seeding would change the images of every stored model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from sfumato.core.batch import Piece
from sfumato.core.seeds import derive


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed torch's global CPU generator by `parts` inside the block, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(*parts))
        yield


class Rng(Protocol):
    """A source of noise for a batch: every tensor has one row per sample."""

    @property
    def rows(self) -> int: ...
    def normal(self, *tail: int) -> Tensor:
        """Standard normal float32, [rows, *tail]."""
        ...

    def uniform(self, *tail: int) -> Tensor:
        """Uniform float32 in [0, 1), [rows, *tail]."""
        ...

    def integers(self, high: int, *tail: int) -> Tensor:
        """Uniform int64 in [0, high), [rows, *tail]."""
        ...


class StreamRng:
    """Noise of one micro-batch in training.

    Every draw generates all `rows_per_stream` rows of each stream and keeps those of the piece, so that a
    global batch sees the same noise in one micro-batch as in several.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        *,
        rows_per_stream: int,
        seed: int,
        images: int,
        phase: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self._pieces = tuple(pieces)
        self._rows_per_stream = rows_per_stream
        self._device = torch.device(device)
        self._generators = [
            torch.Generator(self._device).manual_seed(derive(seed, images, phase, piece.stream))
            for piece in self._pieces
        ]

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self._pieces)

    def normal(self, *tail: int) -> Tensor:
        return self._cut(
            torch.randn(self._rows_per_stream, *tail, generator=generator, device=self._device)
            for generator in self._generators
        )

    def uniform(self, *tail: int) -> Tensor:
        return self._cut(
            torch.rand(self._rows_per_stream, *tail, generator=generator, device=self._device)
            for generator in self._generators
        )

    def integers(self, high: int, *tail: int) -> Tensor:
        return self._cut(
            torch.randint(high, (self._rows_per_stream, *tail), generator=generator, device=self._device)
            for generator in self._generators
        )

    def _cut(self, draws: Iterable[Tensor]) -> Tensor:
        return torch.cat(
            [
                draw[piece.first : piece.first + piece.rows]
                for piece, draw in zip(self._pieces, draws, strict=True)
            ]
        )


class SampleRng:
    """Noise of generated samples: one generator per sample, seeded by (seed, index).

    `generators` may be passed to diffusers' schedulers and pipelines, which draw row by row from such
    a list, so that each sample gets the same noise in a batch of any size.
    """

    def __init__(self, seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self.seeds = [derive(seed, "sample", index) for index in indices]
        self.generators = [torch.Generator(self._device).manual_seed(row_seed) for row_seed in self.seeds]

    @property
    def rows(self) -> int:
        return len(self.generators)

    def normal(self, *tail: int) -> Tensor:
        return torch.cat([torch.randn(1, *tail, generator=g, device=self._device) for g in self.generators])

    def uniform(self, *tail: int) -> Tensor:
        return torch.cat([torch.rand(1, *tail, generator=g, device=self._device) for g in self.generators])

    def integers(self, high: int, *tail: int) -> Tensor:
        return torch.cat(
            [torch.randint(high, (1, *tail), generator=g, device=self._device) for g in self.generators]
        )
