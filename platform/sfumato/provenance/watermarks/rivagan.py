"""RivaGAN: a trained encoder and decoder with attention (Zhang et al., 2019, arXiv 1909.01285).

The networks are the two ONNX files in the wheel of `invisible-watermark`, run by onnxruntime; the rest of
that package, which needs OpenCV, is not imported. A picture costs sixteen to forty times as much as
with `spread`.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from sfumato.errors import ConfigError, with_extra
from sfumato.provenance.watermarks import Bits, Detection, Images, Watermark, WatermarkConfig, p_value

THRESHOLD = 0.52
"""Of a bit, as in the package."""


class RivaganConfig(WatermarkConfig):
    """RivaGAN."""

    least: ClassVar[int] = 64
    packages: ClassVar[tuple[str, ...]] = ("scipy", "onnxruntime", "invisible-watermark")

    kind: Literal["rivagan"] = Field("rivagan", description="RivaGAN's trained networks.")

    def build(self) -> Rivagan:
        return Rivagan(*_sessions())


class Rivagan(Watermark):
    """The scheme with its two networks."""

    def __init__(self, encoder: Any, decoder: Any) -> None:
        self._encoder, self._decoder = encoder, decoder

    def embed(self, images_NHWC: Images, bits: Bits) -> Images:
        """As `Watermark.embed`. Grey pictures get the mean of three channels; transparency stays."""
        marked = images_NHWC.copy()
        data = bits[None].astype(np.float32)
        for image, target in zip(images_NHWC, marked, strict=True):
            frame = self._encoder.run(None, {"frame": _frame(image), "data": data})[0][0, :, 0]
            colours = ((frame.clip(-1, 1) + 1) * 127.5).transpose(1, 2, 0)
            if image.shape[-1] == 1:
                colours = colours.mean(-1, keepdims=True)
            target[..., : colours.shape[-1]] = colours.round().astype(np.uint8)
        return marked

    def detect(self, image_HWC: Images, bits: Bits) -> Detection:
        """As `Watermark.detect`."""
        found = self._decoder.run(None, {"frame": _frame(image_HWC)})[0][0]
        matched = int(((found > THRESHOLD) == (bits > 0)).sum())
        return Detection(matched, p_value(matched))


def _frame(image_HWC: Images) -> Any:
    """float32 [1, 3, 1, H, W] in [-1, 1]."""
    colours = np.repeat(image_HWC, 3, -1) if image_HWC.shape[-1] == 1 else image_HWC[..., :3]
    return (colours.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None, :, None]


@lru_cache(maxsize=1)
def _sessions() -> tuple[Any, Any]:
    """The encoder and the decoder. Raises ConfigError for a missing package."""
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(f"watermark rivagan needs onnxruntime: {with_extra('provenance')}") from None
    package = importlib.util.find_spec("imwatermark")
    if package is None or not package.submodule_search_locations:
        raise ConfigError(
            "watermark rivagan needs invisible-watermark: pip install --no-deps invisible-watermark==0.2.0"
        )
    folder = Path(package.submodule_search_locations[0])
    files = (folder / f"rivagan_{part}.onnx" for part in ("encoder", "decoder"))
    encoder, decoder = (
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]) for file in files
    )
    return encoder, decoder


COMPONENT = RivaganConfig
