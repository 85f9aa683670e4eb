"""DINOv2 features (Oquab et al. 2024): the normalised class token of a self-supervised transformer.

Stein et al. 2023 find that Fréchet distances on them follow human judgement better than on InceptionV3.
Transform: antialiased bicubic resize of the whole image to 224x224, then ImageNet's mean and deviation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.errors import CapabilityError
from sfumato.evaluation.features.extractor import Extracted, FeatureKind, extract_in_chunks, placed
from sfumato.evaluation.features.resize import bicubic, channel_problems, standardise, three_channels
from sfumato.evaluation.features.transformers_folder import folder_given, load_folder, transformers_problems
from sfumato.evaluation.features.weights import sha256_of
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import UInt8Array

VARIABLE = "SFUMATO_DINOV2_WEIGHTS"
SIDE = 224
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
TRANSFORM = f"bicubic antialiased {SIDE}, ImageNet mean and deviation"


class Dinov2Options(Config):
    """Where the weights are."""

    weights: Path | None = Field(
        None, description=f"Folder saved by transformers; null: the environment variable {VARIABLE}."
    )


class Dinov2Extractor:
    """The class token after the last normalisation, [N, 384] to [N, 1536] by model."""

    name = "dinov2"

    def __init__(self, network: nn.Module, dim: int, weights_sha256: str) -> None:
        self._network = network.eval().requires_grad_(False)
        self.dim = dim
        self.digest = hashlib.sha256(f"dinov2 {weights_sha256} {TRANSFORM}".encode()).hexdigest()[:16]
        self.facts: Mapping[str, object] = {"weights_sha256": weights_sha256, "transform": TRANSFORM}

    def extract(self, images_NHWC: UInt8Array) -> Extracted:
        """Features of uint8 images with 1 or 3 channels, of any size."""
        return extract_in_chunks(images_NHWC, self._forward)

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, None]:
        x_BCHW = standardise(bicubic(three_channels(images_BCHW), SIDE), MEAN, DEVIATION)
        output: Any = placed(self._network)(x_BCHW)
        return output.pooler_output, None


class Dinov2Kind:
    """Loads the weights from a folder; nothing is downloaded."""

    name = "dinov2"
    classifies = False
    gives_logits = False
    options: type[Config] = Dinov2Options

    def problems(self, data: DataSpec) -> list[str]:
        """Channels and the package; weights are checked when they are loaded."""
        return channel_problems(self.name, data) + transformers_problems(self.name)

    def build(self, reference: Reference, options: Config, cache: Path) -> Dinov2Extractor:
        assert isinstance(options, Dinov2Options)
        folder = folder_given(self.name, VARIABLE, options.weights, "facebook/dinov2-large")
        if problems := transformers_problems(self.name):
            raise CapabilityError(*problems)
        from transformers import Dinov2Model

        network = load_folder(Dinov2Model, folder, self.name)
        return Dinov2Extractor(network, network.config.hidden_size, sha256_of(folder / "model.safetensors"))


FEATURES: tuple[FeatureKind, ...] = (Dinov2Kind(),)
