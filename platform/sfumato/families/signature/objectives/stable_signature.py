"""Stable Signature: a first stage whose decoder is fine-tuned to sign all that it decodes (Fernandez et al.
2023, sec. 4.2).

    L = mean BCE(R(D_m(z)), m) + w |D_m(z) - D(z)|^2

with D the decoder of a trained first stage, D_m the one that trains, R a reading network that `hidden` has
trained, and one message m for all images. The paper measures images by Watson's distance; here it is the
squared error. Only tensors of the decoder train: the latents, and any model of them, stay as they were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, Frozen, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.first_stage import FirstStage, FirstStageConfig, Latent, OpenStage, Tokenizer, latent_of
from sfumato.core.messages import LENGTH, ReadsMessages
from sfumato.core.pretrained import ModelCard, OpenModel, Pretrained, StoredModelCard
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.stored import StageSpec
from sfumato.errors import CapabilityError, ConfigError
from sfumato.families import config_class
from sfumato.families.signature.objectives import ObjectiveConfig, Training

STAGE, EXTRACTOR = "first_stage", "extractor"
_DECODER = re.compile(r"(^|\.)decoder\.")
"""Names of the tensors that train."""


class StableSignatureConfig(ObjectiveConfig):
    """The first stage that is to sign, the extractor, and the message."""

    kind: Literal["stable_signature"] = Field("stable_signature", description="Selects Stable Signature.")
    first_stage: FirstStageConfig = Field(
        ..., description="The trained autoencoder whose decoder is to sign."
    )
    extractor: Pretrained = Field(..., description="A run of family signature with objective hidden.")
    message: str = Field(
        "876f6936",
        pattern=r"^[0-9a-f]{8}$",
        description="What all images say: 32 bits, as eight hexadecimal digits. Draw your own at random.",
    )
    image_weight: float = Field(5.0, ge=0, description="Weight of the squared difference of the images.")

    @classmethod
    def tiny(cls) -> Self:
        """A KL autoencoder with initial weights, and an extractor likewise."""
        data = {"channels": 1, "height": 8, "width": 8}
        stage = {
            "family": "vae",
            "latent": {"kind": "kl", "channels": 2},
            "network": {"channels": [4, 8], "norm_groups": 2},
        }
        reader = {"family": "signature", "objective": {"kind": "hidden", "width": 4, "depth": 1}}
        return cls(
            first_stage=FirstStageConfig(model=StoredModelCard(family="vae", config=stage, data=data)),
            extractor=Pretrained(model=ModelCard(family="signature", config=reader, data=data)),
        )

    def build(self, training: Training, data: DataSpec) -> SignedFamily:
        return SignedFamily(self, training, self._opened(data), self._reader())

    def stage(self, data: DataSpec) -> StageSpec:
        """The averaged network; it encodes as the first stage that it comes from."""
        spec = self._opened(data).spec
        return StageSpec(
            network="ema", build=lambda: signed(spec), latent=spec.latent, num_codes=spec.num_codes
        )

    def problems(self, data: DataSpec) -> list[str]:
        """That the stage does not fit the data, or the extractor reads nothing, or other images."""
        if problems := self.first_stage.problems(data, config_class, field="model.objective.first_stage"):
            return problems
        if self.extractor.model is None and self.extractor.digest is None:
            return []  # looked up when the run starts
        try:
            reader = self._reader()
        except ConfigError as error:
            return [f"model.objective.extractor.{problem}" for problem in error.problems]
        if reader.data.channels != data.channels:
            theirs, ours = reader.data.channels, data.channels
            found = f"reads images of {theirs} channels, the data's have {ours}; train one on this data"
            return [f"model.objective.extractor: {found}"]
        return []

    def _opened(self, data: DataSpec) -> OpenStage:
        return self.first_stage.open(config_class, data, field="model.objective.first_stage")

    def _reader(self) -> OpenModel:
        found = self.extractor.open(config_class)
        if not isinstance(found.family, ReadsMessages) or found.family.message is not None:
            raise ConfigError("run: is no extractor; train one with family signature, objective hidden")
        return found


class SignedStage(nn.Module):
    """Implements `core.first_stage.FirstStage`: another one, of which the decoder alone trains.

    All other parameters become buffers of the same names, which no strategy, optimizer or decay touches.
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        for path, module in stage.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if not _DECODER.search(f"{path}.{name}"):
                    del module._parameters[name]
                    module.register_buffer(name, parameter.detach())

    def forward(self, latent_BChw: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        return self.decode(latent_BChw)

    def encode(self, image_BCHW: Tensor) -> Latent:
        """As the first stage."""
        return _stage(self.stage).encode(image_BCHW)

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Signed images [B, C, H, W] in [-1, 1]."""
        return _stage(self.stage).decode(latent_BChw)


class SignedTokenizer(SignedStage):
    """The same of one with codes; implements `core.first_stage.Tokenizer`."""

    def codes(self, image_BCHW: Tensor) -> Tensor:
        """As the first stage."""
        return _tokenizer(self.stage).codes(image_BCHW)

    def decode_codes(self, codes_Bhw: Tensor) -> Tensor:
        """Signed images [B, C, H, W] in [-1, 1]."""
        return _tokenizer(self.stage).decode_codes(codes_Bhw)


def signed(spec: StageSpec) -> SignedStage:
    """The network of a first stage, ready to learn to sign."""
    return (SignedTokenizer if spec.num_codes else SignedStage)(spec.build())


class SignedFamily:
    """Implements `core.family.Family`, `Reconstructs` and `core.messages.ReadsMessages`."""

    samplers: Sequence[str] = ("ema", EXTRACTOR)

    def __init__(
        self, config: StableSignatureConfig, training: Training, stage: OpenStage, reader: OpenModel
    ) -> None:
        self._config, self._reader = config, reader.family
        self.message: str | None = config.message
        weights = None if stage.stored is None else replace(stage.stored, into="stage")
        self.nets: Mapping[str, NetSpec] = {
            STAGE: Frozen(build=stage.spec.build, weights=stage.stored),
            EXTRACTOR: Frozen(build=reader.build, weights=reader.weights),
            "network": Trainable(
                build=lambda: signed(stage.spec), optimizer=training.optimizer, weights=weights
            ),
            "ema": EmaOf(source="network", decay=training.ema.decay),
        }
        self.phases: Sequence[Phase] = (Phase(name="sign", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Raises CapabilityError: there is no prior over the latents."""
        raise CapabilityError(
            "a first stage that signs cannot draw images: use it as model.first_stage of a model of latents "
            "or codes"
        )

    def reconstruct(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """The decoded mean of the latents, signed; draws nothing."""
        network = _stage(nets["ema"])
        return network.decode(network.encode(batch["image"]).mean)

    def read_message(self, nets: Nets, image_NCHW: Tensor) -> Tensor:
        """By the extractor."""
        assert isinstance(self._reader, ReadsMessages), "checked where it was opened"
        return self._reader.read_message({"ema": nets[EXTRACTOR]}, image_NCHW)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Bits that are read right, and how far the signed image is from the unsigned one."""
        stage = _stage(nets[STAGE])
        with torch.no_grad():
            z_BChw = latent_of(stage, batch).mean
            plain_BCHW = stage.decode(z_BChw)
        made_BCHW = nets["network"](z_BChw)
        logits_BK = self.read_message(nets, made_BCHW).float()
        bits_BK = message_bits(self._config.message).to(logits_BK).expand_as(logits_BK)
        wrong_B = F.binary_cross_entropy_with_logits(logits_BK, bits_BK, reduction="none").mean(1)
        error_B = (made_BCHW - plain_BCHW).square().flatten(1).mean(1)
        right_B = ((logits_BK > 0) == (bits_BK > 0)).float().mean(1)
        metrics = {"bits": right_B.detach(), "error": error_B.detach()}
        return LossOut(wrong_B + self._config.image_weight * error_B, metrics)


def message_bits(message: str) -> Tensor:
    """Eight hexadecimal digits as bits [32], first bit first."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(message), np.uint8))
    assert len(bits) == LENGTH, "validated"
    return torch.from_numpy(bits).float()


def _stage(network: Any) -> FirstStage:
    assert isinstance(network, FirstStage), "a StageSpec builds nothing else"
    return network


def _tokenizer(network: Any) -> Tokenizer:
    assert isinstance(network, Tokenizer), "it has codes"
    return network


COMPONENT = StableSignatureConfig
