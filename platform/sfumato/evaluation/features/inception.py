"""InceptionV3 pool3 features, on which FID, KID and the Inception Score are defined (Heusel et al. 2017).

Weights are those of the TensorFlow graph of 2015-12-05 in the published PyTorch conversion. By default
images are resized as inside that graph (`tensorflow`); `clean` resizes as Parmar et al. 2022 advise. The
two give different figures: the resize is part of the features' facts.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.errors import CapabilityError
from sfumato.evaluation.features.extractor import Extracted, FeatureKind, extract_in_chunks, placed
from sfumato.evaluation.features.inception_network import SIDE, InceptionV3
from sfumato.evaluation.features.resize import bicubic, channel_problems, tensorflow_bilinear, three_channels
from sfumato.evaluation.features.weights import WeightsFile, sha256_of
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import UInt8Array

WEIGHTS = WeightsFile(
    features="inception",
    variable="SFUMATO_INCEPTION_WEIGHTS",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size=95_628_359,
)
Resize = Literal["tensorflow", "clean"]


class InceptionOptions(Config):
    """Where the weights are, and how images are resized to 299x299."""

    weights: Path | None = Field(
        None, description="File of weights; null: SFUMATO_INCEPTION_WEIGHTS, or one downloaded before."
    )
    download: bool = Field(False, description="Whether to download missing weights.")
    resize: Resize = Field(
        "tensorflow",
        description="tensorflow: bilinear as in the original graph, for figures comparable with published "
        "ones. clean: antialiased bicubic.",
    )


class InceptionExtractor:
    """Features [N, 2048] and logits [N, 1008] without bias."""

    name = "inception"
    dim = 2048

    def __init__(self, network: InceptionV3, resize: Resize, weights_sha256: str) -> None:
        self._network = network.eval().requires_grad_(False)
        self._resize: Resize = resize
        transform = f"{resize} {SIDE}, (x-128)/128"
        self.digest = hashlib.sha256(f"inception {weights_sha256} {transform}".encode()).hexdigest()[:16]
        self.facts: Mapping[str, object] = {
            "weights_sha256": weights_sha256,
            "published_weights": weights_sha256 == WEIGHTS.sha256,
            "resize": resize,
            "transform": transform,
        }

    def extract(self, images_NHWC: UInt8Array) -> Extracted:
        """Features of uint8 images with 1 or 3 channels, of any size."""
        return extract_in_chunks(images_NHWC, self._forward)

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW = three_channels(images_BCHW)
        x_BCHW = (tensorflow_bilinear if self._resize == "tensorflow" else bicubic)(x_BCHW, SIDE)
        pool3_BD, logits_BK = placed(self._network)((x_BCHW - 128) / 128)
        return pool3_BD, logits_BK


class InceptionKind:
    """Loads the weights."""

    name = "inception"
    classifies = False
    gives_logits = True
    options: type[Config] = InceptionOptions

    def problems(self, data: DataSpec) -> list[str]:
        """Channels; weights are checked when they are loaded, before anything is generated."""
        return channel_problems(self.name, data)

    def build(self, reference: Reference, options: Config, cache: Path) -> InceptionExtractor:
        assert isinstance(options, InceptionOptions)
        path = WEIGHTS.locate(options.weights, cache, download=options.download)
        network = InceptionV3()
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, TypeError, AttributeError) as error:
            raise CapabilityError(
                f"features inception: {path} does not hold the weights of the 2015-12-05 InceptionV3 "
                f"({str(error).splitlines()[0]}); get {WEIGHTS.name}"
            ) from error
        return InceptionExtractor(network, options.resize, sha256_of(path))


FEATURES: tuple[FeatureKind, ...] = (InceptionKind(),)
