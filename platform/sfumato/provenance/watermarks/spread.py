"""Spread spectrum in tiles: a sum of 32 faint patterns, repeated over the picture, one sign for every bit.

The patterns are noise of the frequencies that compression and resizing keep and that the eye forgives,
drawn from a secret, orthogonal, and of period 64 pixels. They are added to the brightness, stronger where the
picture is busy. To read, a picture is whitened, its tiles are averaged, and the phases of their spectrum
are correlated with each pattern at every shift, so that a crop, which shifts the tiles, costs only the
4,096 places looked at.

Since the picture is known where it is marked, strength goes to the bits that it speaks against.

After Kalker et al., "A video watermarking system for broadcast monitoring" (1999): tiles and the search for
their shift; Cox et al., "Secure spread spectrum watermarking" (1997): the sum of patterns; Malvar and
Florencio, "Improved spread spectrum" (2003): the picture as known interference.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sfumato.provenance.watermarks import LENGTH, Bits, Detection, Images, Watermark, WatermarkConfig, p_value

Plane = NDArray[np.float64]
TILE = 64
PUBLIC = "sfumato"
"""Stands for the secret where there is none."""
LOWEST, HIGHEST = 0.06, 0.25
"""Of the patterns' frequencies, in cycles a pixel."""
BRIGHTNESS = np.array([0.299, 0.587, 0.114])
"""Of R, G and B (ITU-R BT.601)."""
_BUSIEST = 3.0
"""Times the median strength, at most, where a picture is busy."""


class SpreadConfig(WatermarkConfig):
    """Spread spectrum."""

    least: ClassVar[int] = TILE

    kind: Literal["spread"] = Field("spread", description="Spread spectrum in tiles.")
    psnr: float = Field(
        40.0, ge=30, le=60, description="Strength: PSNR of the marked picture to the unmarked, in dB."
    )
    secret: str | None = Field(
        None,
        min_length=1,
        description="What the patterns are drawn from, without which nobody can read the message. null: "
        "patterns that everybody knows.",
    )

    def build(self) -> Spread:
        return Spread(_patterns(self.secret or PUBLIC), self.psnr)


class Spread(Watermark):
    """The scheme with its patterns [32, 64, 64], each of mean square 1."""

    def __init__(self, patterns: NDArray[np.float64], psnr: float) -> None:
        self._patterns = patterns
        self._spectra = np.conj(np.fft.rfft2(patterns))
        self._deviation = 255 / 10 ** (psnr / 20)

    def embed(self, images_NHWC: Images, bits: Bits) -> Images:
        """As `Watermark.embed`; transparency stays."""
        signs: Plane = np.where(bits > 0, 1.0, -1.0)
        return np.stack([self._marked(image, signs) for image in images_NHWC])

    def detect(self, image_HWC: Images, bits: Bits) -> Detection:
        """As `Watermark.detect`: unshifted, and at all shifts."""
        plane = _brightness(image_HWC)
        if np.ptp(plane) == 0:
            return Detection(0, 1.0)
        agree = np.fft.irfft2(_phases(plane) * self._spectra, (TILE, TILE)) > 0
        matched = (agree == (bits[:, None, None] > 0)).sum(0)
        here, best = int(matched[0, 0]), int(matched.max())
        unshifted, shifted = p_value(here, 2), p_value(best, 2 * TILE * TILE)
        return Detection(here if unshifted <= shifted else best, min(unshifted, shifted))

    def _marked(self, image_HWC: Images, signs_32: Plane) -> Images:
        """Marked twice: evenly, to see where the picture stands on each bit; then with strength as needed."""
        busy = _busy(_brightness(image_HWC))
        even = self._added(image_HWC, signs_32, busy)
        own = self._answers(image_HWC) * signs_32
        gain = float(np.mean(self._answers(even) * signs_32 - own))
        if gain <= 0:
            return even
        return self._added(image_HWC, signs_32 * _shares(own / gain), busy)

    def _added(self, image_HWC: Images, weights_32: Plane, busy: Plane) -> Images:
        tile = np.tensordot(weights_32, self._patterns, 1)
        height, width = busy.shape
        added = np.tile(tile, (-(-height // TILE), -(-width // TILE)))[:height, :width] * busy
        added *= self._deviation / np.sqrt(np.mean(added**2))
        colours = min(image_HWC.shape[-1], 3)
        marked = image_HWC.astype(np.float64)
        marked[..., :colours] += added[..., None]
        return marked.round().clip(0, 255).astype(np.uint8)

    def _answers(self, image_HWC: Images) -> Plane:
        """What `detect` correlates, unshifted: one number for each bit, positive for 1."""
        tile = np.fft.irfft2(_phases(_brightness(image_HWC)), (TILE, TILE))
        found: Plane = np.tensordot(self._patterns, tile, 2)
        return found


def _shares(own_32: Plane) -> Plane:
    """Strengths with mean square 1 that lift all bits to one level, as far as they are below it.

    `own_32` is where the bits are before, in units of what strength 1 adds; the level is found by bisection.
    """
    low, high = float(own_32.min()), float(own_32.max()) + np.sqrt(LENGTH)
    for _ in range(50):
        level = (low + high) / 2
        short = np.maximum(level - own_32, 0)
        low, high = (level, high) if np.mean(short**2) < 1 else (low, level)
    shares: Plane = np.maximum((low + high) / 2 - own_32, 0)
    return shares


def _phases(plane: Plane) -> NDArray[np.complex128]:
    """The spectrum of the mean tile, every amplitude 1."""
    spectrum = np.fft.rfft2(_folded(plane))
    phases: NDArray[np.complex128] = spectrum / (np.abs(spectrum) + 1e-9)
    return phases


@lru_cache(maxsize=4)
def _patterns(secret: str) -> NDArray[np.float64]:
    """Orthogonal noise of the band; a function of the secret alone, on any machine."""
    drawn = hashlib.shake_256(secret.encode()).digest(LENGTH * TILE * TILE)
    spectra = np.fft.fft2(np.frombuffer(drawn, np.uint8).reshape(LENGTH, TILE, TILE) / 127.5 - 1)
    across = np.fft.fftfreq(TILE)
    frequency = np.hypot(across[:, None], across[None])
    band = (frequency >= LOWEST) & (frequency <= HIGHEST)
    noise = np.fft.ifft2(np.where(band, spectra / np.abs(spectra), 0)).real
    basis, triangle = np.linalg.qr(noise.reshape(LENGTH, -1).T)
    basis *= np.sign(np.diag(triangle))  # libraries disagree about the signs
    patterns: NDArray[np.float64] = basis.T.reshape(LENGTH, TILE, TILE) * TILE
    return patterns


def _brightness(image_HWC: Images) -> Plane:
    if image_HWC.shape[-1] == 1:
        return image_HWC[..., 0].astype(np.float64)
    plane: Plane = image_HWC[..., :3] @ BRIGHTNESS
    return plane


def _busy(plane: Plane) -> Plane:
    """The local deviation over its median, with a floor for flat places."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    mean = uniform_filter(plane, 3)
    spread = np.sqrt(np.maximum(uniform_filter(plane * plane, 3) - mean * mean, 0))
    strength = gaussian_filter(spread, 2.0) + 4
    busy: Plane = np.minimum(strength / np.median(strength), _BUSIEST)
    return busy


def _folded(plane: Plane) -> Plane:
    """The mean of the whitened tiles [64, 64]; those at the edges count as far as they go."""
    from scipy.ndimage import gaussian_filter

    fine = plane - gaussian_filter(plane, 2.0)
    white = fine / (np.sqrt(gaussian_filter(fine * fine, 4.0)) + 2)
    height, width = (-(-side // TILE) * TILE for side in plane.shape)
    sums, counts = np.zeros((height, width)), np.zeros((height, width))
    sums[: plane.shape[0], : plane.shape[1]] = white
    counts[: plane.shape[0], : plane.shape[1]] = 1
    shape = (height // TILE, TILE, width // TILE, TILE)
    mean: Plane = sums.reshape(shape).sum((0, 2)) / np.maximum(counts.reshape(shape).sum((0, 2)), 1)
    return mean


COMPONENT = SpreadConfig
