"""TrustMark: a network that adds a faint residual, and one that reads 100 bits (Bui et al., 2023, arXiv
2311.18297).

Its authors publish encoder and decoder as ONNX files (`encoder_Q.onnx`, `decoder_Q.onnx`; the other variants
are C, B and P), which are data and run no code of theirs. The PyTorch files of the package `trustmark` are
pickles and are not read.

As the authors do: the picture is brought to the encoder's size, its residual loses the mean of each channel,
is brought back to the picture's size and added, so that any resolution stays as it is. Pictures more than
twice as long as wide are marked in their middle square; variant P always is. The 100 bits hold the message
three times, without the authors' error correction, so their own reader finds bits and no text.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from sfumato.errors import ConfigError, with_extra
from sfumato.provenance.repeated import repeated, voted
from sfumato.provenance.watermarks import Bits, Detection, Images, Watermark, WatermarkConfig, p_value

_LONGEST = 2.0
"""Of a picture's longer side over its shorter, up to which it is marked whole."""


class TrustmarkConfig(WatermarkConfig):
    """TrustMark, from files that its authors publish."""

    least: ClassVar[int] = 64
    packages: ClassVar[tuple[str, ...]] = ("scipy", "onnxruntime")

    kind: Literal["trustmark"] = Field("trustmark", description="TrustMark's trained networks, from files.")
    encoder: str = Field("", description="ONNX file of the encoder, for example encoder_Q.onnx.")
    decoder: str = Field("", description="ONNX file of the decoder, for example decoder_Q.onnx.")
    strength: float = Field(1.0, gt=0, le=4, description="Factor on the residual; variant P wants 1.25.")
    square: bool = Field(False, description="Always mark the middle square, as variant P does.")

    def build(self) -> Trustmark:
        if not (self.encoder and self.decoder):
            raise ConfigError(
                "watermark trustmark needs the files of its networks: set encoder and decoder, or use spread"
            )
        return Trustmark(
            _network(self.encoder, 2), _network(self.decoder, 1), self.strength, square=self.square
        )


class _Network:
    """An ONNX file, its inputs told apart by their shapes: four dimensions an image, two dimensions bits."""

    def __init__(self, session: Any) -> None:
        self._session = session
        ranks = {len(each.shape): each for each in session.get_inputs()}
        self.image = ranks[4]
        self.bits = ranks.get(2)

    @property
    def side(self) -> int:
        """Of the images that it takes; 256, as in training, where it takes any."""
        size = self.image.shape[2]
        return size if isinstance(size, int) else 256

    def run(self, image_1CHW: Any, bits_1K: Any = None) -> list[Any]:
        """All outputs."""
        inputs = {self.image.name: image_1CHW}
        if self.bits is not None:
            inputs[self.bits.name] = bits_1K
        found: list[Any] = self._session.run(None, inputs)
        return found


class Trustmark(Watermark):
    """The scheme with its two networks."""

    def __init__(self, encoder: _Network, decoder: _Network, strength: float, *, square: bool) -> None:
        self._encoder, self._decoder = encoder, decoder
        self._strength, self._square = strength, square
        assert encoder.bits is not None, "an encoder takes bits"
        length = encoder.bits.shape[1]
        self._length = length if isinstance(length, int) else 100

    def embed(self, images_NHWC: Images, bits: Bits) -> Images:
        """As `Watermark.embed`. Grey pictures get the mean of three channels; transparency stays."""
        marked = images_NHWC.copy()
        secret = repeated(bits, self._length)[None]
        for image, target in zip(images_NHWC, marked, strict=True):
            there = self._region(image)
            colours = _colours(image[there])
            small = _resized(colours, self._encoder.side)
            outputs = self._encoder.run(small, secret)
            stego = next(found for found in outputs if np.shape(found) == small.shape)
            residual = np.clip(stego, -1, 1) - small
            residual -= residual.mean((2, 3), keepdims=True)
            added = _enlarged(residual[0], colours.shape[:2]) * self._strength * 127.5
            if image.shape[-1] == 1:
                added = added.mean(-1, keepdims=True)
            part = image[there][..., : added.shape[-1]].astype(np.float64) + added
            target[there][..., : added.shape[-1]] = part.round().clip(0, 255).astype(np.uint8)
        return marked

    def detect(self, image_HWC: Images, bits: Bits) -> Detection:
        """As `Watermark.detect`."""
        small = _resized(_colours(image_HWC[self._region(image_HWC)]), self._decoder.side)
        matched = int((voted(self._decoder.run(small)[0].ravel()) == (bits > 0)).sum())
        return Detection(matched, p_value(matched))

    def _region(self, image_HWC: Images) -> tuple[slice, slice]:
        """All of a picture, or its middle square."""
        height, width = image_HWC.shape[:2]
        if not self._square and max(height, width) <= _LONGEST * min(height, width):
            return slice(None), slice(None)
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return slice(top, top + side), slice(left, left + side)


def _colours(image_HWC: Images) -> Images:
    """uint8 [H, W, 3]."""
    return np.repeat(image_HWC, 3, -1) if image_HWC.shape[-1] == 1 else image_HWC[..., :3]


def _resized(image_HWC: Images, side: int) -> Any:
    """float32 [1, 3, side, side] in [-1, 1]."""
    small = np.asarray(Image.fromarray(image_HWC).resize((side, side), Image.Resampling.BILINEAR))
    return (small.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]


def _enlarged(residual_CHW: Any, size: tuple[int, ...]) -> Any:
    """float64 [H, W, C] of this size (H, W)."""
    planes = [
        np.asarray(Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        for plane in residual_CHW.astype(np.float32)
    ]
    return np.stack(planes, -1).astype(np.float64)


@lru_cache(maxsize=4)
def _network(path: str, inputs: int) -> _Network:
    """Raises ConfigError: a missing package or file, or a file that is no such network."""
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(f"watermark trustmark needs onnxruntime: {with_extra('provenance')}") from None
    if not Path(path).is_file():
        raise ConfigError(f"watermark trustmark: {path}: no such file; its authors publish it as ONNX")
    if Path(path).suffix != ".onnx":
        raise ConfigError(
            f"watermark trustmark: {path} is no ONNX file; checkpoints of PyTorch are pickles and are not "
            "read"
        )
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (its classes are not public)
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"watermark trustmark: {path} cannot be read: {reason}") from None
    shapes = sorted(len(each.shape) for each in session.get_inputs())
    if shapes != ([2, 4] if inputs == 2 else [4]):
        what = "an image and bits" if inputs == 2 else "an image"
        raise ConfigError(
            f"watermark trustmark: {path} does not take {what}; encoder and decoder may be swapped"
        )
    return _Network(session)


COMPONENT = TrustmarkConfig
