"""CLIP features (Radford et al. 2021): image embeddings, and text embeddings in the same space for captions.

Transform: antialiased bicubic resize of the whole image to the model's input size, without a crop (as in
Jayasumana et al. 2024 for CMMD), then CLIP's mean and deviation. Embeddings are as projected, not scaled to
length 1: the metrics that need unit vectors scale them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.errors import CapabilityError
from sfumato.evaluation.features.extractor import (
    CHUNK,
    Extracted,
    FeatureKind,
    device,
    exact_float32,
    extract_in_chunks,
    one_thread,
    placed,
)
from sfumato.evaluation.features.resize import bicubic, channel_problems, standardise, three_channels
from sfumato.evaluation.features.transformers_folder import folder_given, load_folder, transformers_problems
from sfumato.evaluation.features.weights import sha256_of
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import Float32Array, UInt8Array

VARIABLE = "SFUMATO_CLIP_WEIGHTS"
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ClipOptions(Config):
    """Where the weights are."""

    weights: Path | None = Field(
        None,
        description=f"Folder saved by transformers, with the tokenizer for captions; null: {VARIABLE}.",
    )


class ClipExtractor:
    """Projected embeddings of images, and of captions if the folder has a tokenizer."""

    name = "clip"

    def __init__(self, network: nn.Module, tokenizer: Any | None, weights_sha256: str) -> None:
        self._network = network.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        config: Any = network.config
        self.dim: int = config.projection_dim
        self._side: int = config.vision_config.image_size
        self._length: int = config.text_config.max_position_embeddings
        transform = f"bicubic antialiased {self._side}, CLIP mean and deviation"
        self.digest = hashlib.sha256(f"clip {weights_sha256} {transform}".encode()).hexdigest()[:16]
        self.facts: Mapping[str, object] = {"weights_sha256": weights_sha256, "transform": transform}

    def extract(self, images_NHWC: UInt8Array) -> Extracted:
        """Features of uint8 images with 1 or 3 channels, of any size."""
        return extract_in_chunks(images_NHWC, self._forward)

    def extract_text(self, captions: Sequence[str]) -> Float32Array:
        """Embeddings [N, dim] of captions, cut to the model's length.

        Raises CapabilityError without a tokenizer.
        """
        if self._tokenizer is None:
            raise CapabilityError(
                "captions need a tokenizer in the folder of features clip: add vocab.json and merges.txt"
            )
        parts: list[Float32Array] = []
        network: Any = placed(self._network)
        with one_thread(), exact_float32(), torch.inference_mode():
            for start in range(0, len(captions), CHUNK):
                tokens = self._tokenizer(
                    list(captions[start : start + CHUNK]),
                    padding="max_length",
                    max_length=self._length,
                    truncation=True,
                    return_tensors="pt",
                ).to(device())
                hidden = network.text_model(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                )
                parts.append(network.text_projection(hidden.pooler_output).float().cpu().numpy())
        return np.concatenate(parts)

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, None]:
        x_BCHW = standardise(bicubic(three_channels(images_BCHW), self._side), MEAN, DEVIATION)
        network: Any = placed(self._network)
        hidden = network.vision_model(pixel_values=x_BCHW)
        return network.visual_projection(hidden.pooler_output), None


class ClipKind:
    """Loads the weights from a folder; nothing is downloaded."""

    name = "clip"
    classifies = False
    gives_logits = False
    options: type[Config] = ClipOptions

    def problems(self, data: DataSpec) -> list[str]:
        """Channels and the package; weights are checked when they are loaded."""
        return channel_problems(self.name, data) + transformers_problems(self.name)

    def build(self, reference: Reference, options: Config, cache: Path) -> ClipExtractor:
        assert isinstance(options, ClipOptions)
        folder = folder_given(self.name, VARIABLE, options.weights, "openai/clip-vit-large-patch14-336")
        if problems := transformers_problems(self.name):
            raise CapabilityError(*problems)
        from transformers import CLIPModel, CLIPTokenizer

        tokenizer = None
        if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return ClipExtractor(
            load_folder(CLIPModel, folder, self.name), tokenizer, sha256_of(folder / "model.safetensors")
        )


FEATURES: tuple[FeatureKind, ...] = (ClipKind(),)
