"""Tree-Ring: rings in the spectrum of the noise hold the key (Wen et al. 2023, sec. 3).

In one channel or more, every frequency on a ring has the same value, which rotation keeps and small crops
hardly change. Here the values are complex normal numbers: those below the horizontal are the conjugates of
those above, as in the spectrum of anything real (the authors take real noise's Fourier transform and drop
what becomes imaginary). Marked noise has the variance of noise and is not white: all pictures share its
rings.

The paper's p-value takes the noise found for an unmarked picture to be white, which that of real images is
not. Here the means of the rings, each over the ring's own root mean square, are compared with the key. For
any picture this sum, over its own length, is standard normal over the draw of the key: the p-value is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.provenance.noises import PUBLIC, NoiseConfig, NoiseMark
from sfumato.provenance.watermarks import Detection

LEAST = 16
"""Smallest side of the noise."""
FEWEST = 7
"""Rings in all channels, with which a whole mark has p = 1e-4."""


class TreeRingConfig(NoiseConfig):
    """Tree-Ring; the message is part of what the key is drawn from, and cannot be read."""

    kind: Literal["tree_ring"] = Field("tree_ring", description="Rings in the noise's spectrum.")
    radius: int = Field(
        10, ge=4, description="Rings: frequencies of 1 to this many waves across the noise's shorter side."
    )
    channels: int = Field(1, ge=1, description="Channels that are marked, counted from the last.")

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        """The score of a whole mark is the length of the key, about the root of 2 radius channels."""
        if self.radius * self.channels < FEWEST:
            raise ValueError(
                f"radius: {self.radius} rings in {self.channels} channels are too short a key: chance "
                f"explains it; set radius times channels to {FEWEST} or more"
            )
        return self

    def build(self, shape: tuple[int, ...]) -> TreeRing:
        channels, height, width = shape
        side = min(height, width)
        if side < LEAST:
            raise ConfigError(
                f"provenance.noise: tree_ring needs noise of {LEAST} values a side, this model's is "
                f"{height}x{width}; leave it out"
            )
        if 2 * self.radius >= side:
            raise ConfigError(
                f"provenance.noise.radius: got {self.radius}, noise of {height}x{width} has room for "
                f"{(side - 1) // 2}"
            )
        if self.channels > channels:
            raise ConfigError(
                f"provenance.noise.channels: got {self.channels}, this model's noise has {channels}"
            )
        drawn = f"tree ring\x1f{self.secret or PUBLIC}\x1f{self.message}"
        return TreeRing(_rings(height, width, self.radius), _key(drawn, self.channels, self.radius))


class TreeRing(NoiseMark):
    """The scheme with the ring of each frequency [h, w], 0 where it is unmarked and negative below the
    horizontal, and the key [channels, rings], complex and of mean square 1."""

    def __init__(self, ring_hw: np.ndarray, key_CR: np.ndarray) -> None:
        self._ring, self._key = ring_hw, key_CR
        upper = np.concatenate([np.zeros((len(key_CR), 1)), key_CR], 1)[:, np.abs(ring_hw)]
        self._spectrum = np.where(ring_hw < 0, np.conj(upper), upper) * np.sqrt(ring_hw.size)

    def applied(self, noise_NChw: Tensor, seeds: Sequence[int]) -> Tensor:
        """As `NoiseMark.applied`."""
        marked = noise_NChw.clone()
        there = torch.from_numpy(self._ring != 0).to(noise_NChw.device)
        chosen = torch.from_numpy(self._spectrum).to(noise_NChw.device)
        last = slice(-len(self._key), None)
        spectrum = torch.where(there, chosen, torch.fft.fft2(noise_NChw[:, last].double()))
        marked[:, last] = torch.fft.ifft2(spectrum).real.to(noise_NChw)
        return marked

    def detect(self, noise_Chw: Tensor) -> Detection:
        """As `NoiseMark.detect`."""
        from scipy.stats import norm

        noise = noise_Chw[-len(self._key) :].double().cpu().numpy()
        spectra = np.fft.fft2(noise)
        found = np.stack([self._coherence(spectra, ring + 1) for ring in range(self._key.shape[1])], 1)
        length = np.sqrt(np.sum(np.abs(found) ** 2))
        if length == 0:
            return Detection(None, 1.0)
        # Real and imaginary parts of the key have variance 1/2.
        score = np.sum((np.conj(self._key) * found).real) * np.sqrt(2) / length
        return Detection(None, float(norm.sf(score)))

    def _coherence(self, spectra: np.ndarray, ring: int) -> np.ndarray:
        """The mean of a ring over its root mean square, [channels]; 0 where it is empty."""
        values = spectra[:, self._ring == ring]
        rms = np.sqrt(np.mean(np.abs(values) ** 2, 1))
        found: np.ndarray = values.mean(1) / np.where(rms > 0, rms, 1)
        return found


def _rings(height: int, width: int, radius: int) -> np.ndarray:
    """Of each frequency [h, w], counted in waves across the shorter side; negative for those whose conjugate
    is on the upper half."""
    side = min(height, width)
    down, across = np.fft.fftfreq(height)[:, None] * side, np.fft.fftfreq(width)[None] * side
    ring = np.rint(np.hypot(down, across)).astype(int)
    ring[ring > radius] = 0
    signed: np.ndarray = np.where((down < 0) | ((down == 0) & (across < 0)), -ring, ring)
    return signed


@lru_cache(maxsize=4)
def _key(drawn: str, channels: int, rings: int) -> np.ndarray:
    """Complex normal numbers [channels, rings], a function of the text alone."""
    from scipy.stats import norm

    content = hashlib.shake_256(drawn.encode()).digest(channels * rings * 2 * 4)
    uniform = (np.frombuffer(content, "<u4").reshape(2, channels, rings) + 0.5) / 2**32
    real, imaginary = norm.ppf(uniform) / np.sqrt(2)
    key: np.ndarray = real + 1j * imaginary
    return key


COMPONENT = TreeRingConfig
