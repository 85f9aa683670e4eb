"""The quantised autoencoder (van den Oord et al. 2017): a grid of codes between encoder and decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets
from sfumato.core.first_stage import Latent
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.state import State
from sfumato.core.stored import StageSpec
from sfumato.families.vae.autoencoder import AutoencoderFamily, distance
from sfumato.families.vae.coders import NetworkConfig, decoder, encoder
from sfumato.families.vae.latents import LatentConfig, Parts
from sfumato.families.vae.quantizers import (
    QUANTIZERS,
    Codebook,
    FollowingConfig,
    Quantized,
    QuantizerConfig,
)
from sfumato.families.vae.quantizers.codebook import LearnedCodebook


class VqLatent(LatentConfig):
    """A grid of codes: a quantised autoencoder, VQ-VAE (van den Oord et al. 2017)."""

    kind: Literal["vq"] = Field("vq", description="Selects the quantised autoencoder.")
    channels: int = Field(8, ge=1, description="Numbers at each position of the grid before quantisation.")
    quantizer: Annotated[QuantizerConfig, QUANTIZERS] = Field(
        LearnedCodebook(), description="How a position of the grid becomes one of finitely many codes."
    )
    reconstruction: Literal["l1", "l2"] = Field("l2", description="Distance of images.")

    @classmethod
    def tiny(cls) -> Self:
        """Four channels, 16 codes."""
        return cls(channels=4, quantizer=LearnedCodebook.tiny())

    def build(self, parts: Parts, data: DataSpec) -> VqAutoencoderFamily:
        """A quantised autoencoder."""
        if isinstance(self.quantizer, FollowingConfig):
            return FollowingVqFamily(parts, self, self.quantizer, data)
        return VqAutoencoderFamily(parts, self, data)

    def stage(self, network: NetworkConfig, data: DataSpec) -> StageSpec:
        """The averaged network, its grid and its codes."""
        factor = network.factor
        return StageSpec(
            network="ema",
            build=lambda: VqAutoencoder(network, self, data),
            latent=(self.channels, data.height // factor, data.width // factor),
            num_codes=self.quantizer.codes,
        )


class Coded(NamedTuple):
    """The result of a pass through the network."""

    output_BCHW: Tensor
    """Reconstruction."""
    codes_Bhw: Tensor
    """int64."""
    loss_B: Tensor
    """The quantiser's."""
    z_BChw: Tensor
    """The latents before quantisation, without gradients."""


class VqAutoencoder(nn.Module):
    """Implements `core.first_stage.Tokenizer`."""

    def __init__(self, network: NetworkConfig, latent: VqLatent, data: DataSpec) -> None:
        super().__init__()
        self.encoder = encoder(network, data.channels, latent.channels)
        self.quantizer = latent.quantizer.build(latent.channels)
        self.decoder = decoder(network, latent.channels, data.channels)

    def forward(self, x_BCHW: Tensor, codebook: Codebook | None = None) -> Coded:
        """Encode, quantise and decode, by `codebook` where the quantiser's is state of the family."""
        if codebook is not None:
            self.quantizer.use(codebook)
        z_BChw = self.encoder(x_BCHW)
        quantized: Quantized = self.quantizer(z_BChw)
        output: Tensor = self.decoder(quantized.straight_through)
        return Coded(output.float(), quantized.codes_Bhw, quantized.loss_B, z_BChw.detach())

    def encode(self, image_BCHW: Tensor) -> Latent:
        """The latents before quantisation, which `decode` repeats; their `std` is zero."""
        z_BChw = self.encoder(image_BCHW).float()
        return Latent(z_BChw, torch.zeros_like(z_BChw))

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] from latents, after their quantisation."""
        output: Tensor = self.decoder(self.quantizer(latent_BChw).straight_through)
        return output.float().clamp(-1, 1)

    def codes(self, image_BCHW: Tensor) -> Tensor:
        """int64 [B, h, w]."""
        quantized: Quantized = self.quantizer(self.encoder(image_BCHW))
        return quantized.codes_Bhw

    def decode_codes(self, codes_Bhw: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        output: Tensor = self.decoder(self.quantizer.vectors(codes_Bhw))
        return output.float().clamp(-1, 1)


class VqAutoencoderFamily(AutoencoderFamily):
    """Trains a `VqAutoencoder`."""

    def __init__(self, parts: Parts, latent: VqLatent, data: DataSpec) -> None:
        super().__init__(parts, lambda: VqAutoencoder(parts.network, latent, data), self._loss)
        self._latent = latent

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Distance of the images plus the term that keeps codes and latents together."""
        x_BCHW = batch["image"]
        return self._weigh(x_BCHW, nets["network"](x_BCHW))

    def _weigh(self, x_BCHW: Tensor, coded: Coded) -> LossOut:
        distance_B = distance(self._latent.reconstruction, x_BCHW, coded.output_BCHW)
        metrics = {
            "distance": distance_B.detach(),
            "quantizer": coded.loss_B.detach(),
            "different_codes": _different(coded.codes_Bhw),
        }
        return LossOut(distance_B + coded.loss_B, metrics)


class FollowingVqFamily(VqAutoencoderFamily):
    """The same with a codebook that follows the latents. Implements `core.state.HasState`.

    The network keeps the codebook of its last step, so that it is complete as a first stage.
    """

    def __init__(self, parts: Parts, latent: VqLatent, quantizer: FollowingConfig, data: DataSpec) -> None:
        super().__init__(parts, latent, data)
        self._quantizer = quantizer
        self.state = quantizer.state(latent.channels)

    def advance(self, state: State, sums: State, progress: Progress) -> State:
        """The codebook after a step."""
        return self._quantizer.advance(state, sums)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        x_BCHW, quantizer = batch["image"], self._quantizer
        coded: Coded = nets["network"](x_BCHW, quantizer.codebook(progress.state))
        out = self._weigh(x_BCHW, coded)
        height, width = coded.codes_Bhw.shape[1:]
        draws_Bhw = quantizer.draws(rng, (height, width), progress.batch)
        return replace(
            out,
            metrics={**out.metrics, **quantizer.metrics(progress.state)},
            sums=quantizer.sums(coded.z_BChw, coded.codes_Bhw, draws_Bhw),
        )


def _different(codes_Bhw: Tensor) -> Tensor:
    """The number of different codes that each image uses, [B]."""
    ordered = codes_Bhw.flatten(1).sort(dim=1).values
    return (ordered.diff(dim=1) != 0).sum(dim=1).float() + 1


COMPONENT = VqLatent
