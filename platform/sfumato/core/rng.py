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

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from sfumato.core.batch import Piece
from sfumato.core.seeds import derive

Shape = Callable[[Tensor, Sequence[int]], Tensor]
"""From normal noise [rows, ...] and a seed for each row to noise of the same shape, row by row."""
BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below one."""


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed torch's global CPU generator by `parts` inside the block, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(*parts))
        yield


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators after the block: what follows draws what the block has drawn.

    Two networks that run one inside and one after it drop the same units.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
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

    def stratified(self) -> Tensor:
        """Uniform float32 in [0, 1), [rows], spread: each of as many equal intervals as the global batch has
        rows holds one of them (Kingma et al. 2021, app. I.1)."""
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
        streams: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        """`streams` is the number of streams of the global batch, which only `stratified` uses."""
        self._pieces = tuple(pieces)
        self._streams = streams
        self._spread = (seed, images, phase, "stratified")
        self._spreads = 0
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

    def stratified(self) -> Tensor:
        assert all(piece.stream < self._streams for piece in self._pieces), "made without `streams`"
        total = self._rows_per_stream * self._streams
        self._spreads += 1
        generator = torch.Generator().manual_seed(derive(*self._spread, self._spreads))
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        # A stream's rows are spread as well: they may be alike.
        index = torch.cat(
            [
                torch.arange(piece.first, piece.first + piece.rows) * self._streams + piece.stream
                for piece in self._pieces
            ]
        )
        return ((offset + index / total) % 1).float().clamp(max=BELOW_ONE).to(self._device)

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

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        shape: Shape | None = None,
    ) -> None:
        """`shape` acts on the noise that samplers begin with, and on no other."""
        self._shape = shape
        self._device = torch.device(device)
        self.seeds = [derive(seed, "sample", index) for index in indices]
        self.generators = [torch.Generator(self._device).manual_seed(row_seed) for row_seed in self.seeds]

    def branch(self, name: str) -> SampleRng:
        """Other noise of the same samples, which leaves this one's as it is."""
        other = SampleRng(0, (), self._device)
        other.seeds = [derive(seed, name) for seed in self.seeds]
        other.generators = [torch.Generator(self._device).manual_seed(seed) for seed in other.seeds]
        return other

    def twice(self) -> SampleRng:
        """The same noise from here on for two rows of every sample: all samples, then all again."""
        other = SampleRng(0, (), self._device)
        other.seeds = [*self.seeds, *self.seeds]
        for generator in (*self.generators, *self.generators):
            copied = torch.Generator(self._device)
            copied.set_state(generator.get_state())
            other.generators.append(copied)
        return other

    @property
    def rows(self) -> int:
        return len(self.generators)

    def normal(self, *tail: int) -> Tensor:
        return torch.cat([torch.randn(1, *tail, generator=g, device=self._device) for g in self.generators])

    def beginning(self, *tail: int) -> Tensor:
        """The noise that a sampler begins with, [rows, *tail]: `normal`, in its shape if it has one."""
        noise = self.normal(*tail)
        return noise if self._shape is None else self._shape(noise, self.seeds)

    def uniform(self, *tail: int) -> Tensor:
        return torch.cat([torch.rand(1, *tail, generator=g, device=self._device) for g in self.generators])

    def stratified(self) -> Tensor:
        """Independent: a sample knows no batch."""
        return self.uniform()

    def integers(self, high: int, *tail: int) -> Tensor:
        return torch.cat(
            [torch.randint(high, (1, *tail), generator=g, device=self._device) for g in self.generators]
        )
