"""How many bits of a seed count, and what follows for samples."""

from __future__ import annotations

import math

import numpy as np
import torch

from sfumato.core.rng import SampleRng
from sfumato.core.seeds import derive

SAMPLES = 200_000


def test_the_generator_on_the_cpu_keeps_32_bits_of_a_seed() -> None:
    """The documented figures rely on this; if a version of torch keeps more, they may go."""

    def drawn(seed: int) -> torch.Tensor:
        return torch.randn(8, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(5), drawn(5 + 2**32)) and not torch.equal(drawn(5), drawn(6))


def test_no_more_samples_share_their_noise_than_chance_has_it() -> None:
    """Pairs of equal lower bits among n seeds: a Poisson number with mean n^2 / 2^33."""
    kept = np.array([derive(3, "sample", index) & 0xFFFFFFFF for index in range(SAMPLES)], np.uint32)
    pairs = SAMPLES - len(np.unique(kept))
    expected = SAMPLES**2 / 2**33
    assert abs(pairs - expected) < 4 * math.sqrt(expected)
    rng = SampleRng(3, [0, SAMPLES - 1])
    assert [seed & 0xFFFFFFFF for seed in rng.seeds] == [kept[0], kept[-1]]
