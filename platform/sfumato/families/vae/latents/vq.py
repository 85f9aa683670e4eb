"""The quantised autoencoder (van den Oord et al. 2017): a grid of codes between encoder and decoder."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets
from sfumato.core.first_stage import Latent, StageSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.families.vae.autoencoder import AutoencoderFamily, distance
from sfumato.families.vae.coders import NetworkConfig, decoder, encoder
from sfumato.families.vae.latents import LatentConfig, Parts
from sfumato.families.vae.quantizers import QUANTIZERS, Quantized, QuantizerConfig
from sfumato.families.vae.quantizers.codebook import LearnedCodebook


class VqLatent(LatentConfig):
    """A grid of codes: a quantised autoencoder, VQ-VAE (van den Oord et al. 2017)."""

    kind: Literal["vq"] = Field("vq", description="Selects the quantised autoencoder.")
    channels: int = Field(8, ge=1, description="Numbers at each place of the grid before quantisation.")
    quantizer: Annotated[QuantizerConfig, QUANTIZERS] = Field(
        LearnedCodebook(), description="How a place of the grid becomes one of finitely many codes."
    )
    reconstruction: Literal["l1", "l2"] = Field("l2", description="Distance of images.")

    @classmethod
    def tiny(cls) -> Self:
        """Four channels, 16 codes."""
        return cls(channels=4, quantizer=LearnedCodebook.tiny())

    def build(self, parts: Parts, data: DataSpec) -> VqAutoencoderFamily:
        """A quantised autoencoder."""
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


class VqAutoencoder(nn.Module):
    """Implements `core.first_stage.Tokenizer`."""

    def __init__(self, network: NetworkConfig, latent: VqLatent, data: DataSpec) -> None:
        super().__init__()
        self.encoder = encoder(network, data.channels, latent.channels)
        self.quantizer = latent.quantizer.build(latent.channels)
        self.decoder = decoder(network, latent.channels, data.channels)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction [B, C, H, W], codes int64 [B, h, w], and the quantiser's loss [B]."""
        quantized = self._quantize(x_BCHW)
        output: Tensor = self.decoder(quantized.straight_through)
        return output.float(), quantized.codes_Bhw, quantized.loss_B

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
        return self._quantize(image_BCHW).codes_Bhw

    def decode_codes(self, codes_Bhw: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        output: Tensor = self.decoder(self.quantizer.vectors(codes_Bhw))
        return output.float().clamp(-1, 1)

    def _quantize(self, image_BCHW: Tensor) -> Quantized:
        quantized: Quantized = self.quantizer(self.encoder(image_BCHW))
        return quantized


class VqAutoencoderFamily(AutoencoderFamily):
    """Trains a `VqAutoencoder`."""

    def __init__(self, parts: Parts, latent: VqLatent, data: DataSpec) -> None:
        super().__init__(parts, lambda: VqAutoencoder(parts.network, latent, data), self._loss)
        self._latent = latent

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Distance of the images plus what keeps codes and latents together."""
        x_BCHW = batch["image"]
        output_BCHW, codes_Bhw, quantizer_B = nets["network"](x_BCHW)
        distance_B = distance(self._latent.reconstruction, x_BCHW, output_BCHW)
        metrics = {
            "distance": distance_B.detach(),
            "quantizer": quantizer_B.detach(),
            "different_codes": _different(codes_Bhw),
        }
        return LossOut(distance_B + quantizer_B, metrics)


def _different(codes_Bhw: Tensor) -> Tensor:
    """How many different codes each image uses, [B]."""
    ordered = codes_Bhw.flatten(1).sort(dim=1).values
    return (ordered.diff(dim=1) != 0).sum(dim=1).float() + 1


COMPONENT = VqLatent
