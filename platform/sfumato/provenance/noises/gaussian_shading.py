"""Gaussian shading: the signs of the noise spell the message, its sizes stay free (Yang et al. 2024, sec.
4.1).

The message's bits are repeated over the noise and encrypted with a stream cipher (here the bits of SHAKE-256
of the secret); every value keeps its size and takes the sign of its bit. Since the size of a normal value is
independent of its sign, marked noise is exactly normal over the draw of the secret.

The paper encrypts all pictures with one stream, so all of them begin with the same signs. Here each picture
has one of `patterns` streams, chosen by its seed, in pairs of opposites: for one secret, too, each value is
exactly normal over the seeds. Finding the mark tries all streams and pays for it (Bonferroni).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.seeds import derive
from sfumato.errors import ConfigError
from sfumato.provenance.noises import PUBLIC, NoiseConfig, NoiseMark
from sfumato.provenance.watermarks import LENGTH, Detection, p_value

LEAST = 8 * LENGTH
"""Values of the noise, so that each bit is read from eight."""


class GaussianShadingConfig(NoiseConfig):
    """Gaussian shading with one bit a value (the paper's l = 1)."""

    kind: Literal["gaussian_shading"] = Field("gaussian_shading", description="Signs of the noise.")
    patterns: int = Field(
        256,
        ge=2,
        le=65536,
        multiple_of=2,
        description="Sign patterns that pictures begin with: more of them keep pictures more different, and "
        "each multiplies the p-value.",
    )

    def build(self, shape: tuple[int, ...]) -> GaussianShading:
        if prod(shape) < LEAST:
            size = "x".join(map(str, shape))
            raise ConfigError(
                f"provenance.noise: gaussian_shading needs noise of {LEAST} values, this model's has "
                f"{prod(shape)} ({size}); leave it out"
            )
        streams = _streams(self.secret or PUBLIC, self.patterns // 2, prod(shape))
        return GaussianShading(streams, self.bits)


class GaussianShading(NoiseMark):
    """The scheme with its streams [patterns / 2, values] of bits and the message [32]."""

    def __init__(self, streams: np.ndarray, bits: np.ndarray) -> None:
        self._streams, self._bits = streams, bits

    def applied(self, noise_NChw: Tensor, seeds: Sequence[int]) -> Tensor:
        """As `NoiseMark.applied`."""
        signs = np.stack([self._signs(derive(seed, "gaussian shading")) for seed in seeds])
        signs_NChw = torch.from_numpy(signs).to(noise_NChw).view_as(noise_NChw)
        return noise_NChw.abs() * signs_NChw

    def detect(self, noise_Chw: Tensor) -> Detection:
        """As `NoiseMark.detect`: each bit by the majority of its values, for the stream that fits best."""
        positive = (noise_Chw.flatten() > 0).cpu().numpy()
        agree = (self._streams == positive) * 2.0 - 1
        columns = -(-agree.shape[1] // LENGTH) * LENGTH
        agree = np.pad(agree, ((0, 0), (0, columns - agree.shape[1])))
        votes = agree.reshape(len(agree), -1, LENGTH).sum(1)
        matched = np.stack([votes > 0, votes < 0]) == (self._bits > 0)
        best = int(matched.sum(-1).max())
        return Detection(best, p_value(best, 2 * len(self._streams)))

    def _signs(self, number: int) -> np.ndarray:
        """Of one picture, [values]: a 1 of the encrypted message is a positive value."""
        stream, opposite = self._streams[(number >> 1) % len(self._streams)], number & 1
        spelled = np.resize(self._bits, stream.shape) ^ opposite
        return np.where(stream == spelled, 1.0, -1.0)


@lru_cache(maxsize=4)
def _streams(secret: str, number: int, length: int) -> np.ndarray:
    """Bits [number, length]; a function of the secret alone, on any machine."""
    drawn = hashlib.shake_256(f"gaussian shading\x1f{secret}".encode()).digest(-(-number * length // 8))
    return np.unpackbits(np.frombuffer(drawn, np.uint8), count=number * length).reshape(number, length)


COMPONENT = GaussianShadingConfig
