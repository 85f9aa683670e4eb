"""The quantised autoencoder (van den Oord et al. 2017): a grid of codes between encoder and decoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

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
from sfumato.families.vae.autoencoder import AutoencoderFamily, Stateful, StatePart, distance
from sfumato.families.vae.code_use import CodeUse
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
from sfumato.families.vae.sharpening import Rebuilt, rebuilt


class VqLatent(LatentConfig):
    """A grid of codes: a quantised autoencoder, VQ-VAE (van den Oord et al. 2017)."""

    sharpens: ClassVar[bool] = True
    kind: Literal["vq"] = Field("vq", description="Selects the quantised autoencoder.")
    channels: int = Field(8, ge=1, description="Numbers at each position of the grid before quantisation.")
    quantizer: Annotated[QuantizerConfig, QUANTIZERS] = Field(
        LearnedCodebook(), description="How a position of the grid becomes one of finitely many codes."
    )
    reconstruction: Literal["l1", "l2"] = Field("l2", description="Distance of images.")
    code_use: bool = Field(
        False,
        description="Count which codes are used, for the metrics perplexity and codes_in_use; a codebook of "
        "moving averages does so in any case.",
    )

    @classmethod
    def tiny(cls) -> Self:
        """Four channels, 16 codes."""
        return cls(channels=4, quantizer=LearnedCodebook.tiny())

    def build(self, parts: Parts, data: DataSpec) -> VqAutoencoderFamily:
        """A quantised autoencoder."""
        following = isinstance(self.quantizer, FollowingConfig)
        stateful = following or self.code_use or parts.sharpening.state
        return (StatefulVqFamily if stateful else VqAutoencoderFamily)(parts, self, data)

    def sample_problems(self, network: NetworkConfig, data: DataSpec, samples: int) -> list[str]:
        """A codebook with more codes than there are vectors."""
        places = (data.height // network.factor) * (data.width // network.factor)
        if self.quantizer.learned <= samples * places:
            return []
        have = f"{samples:,} images of {places:,} places have only {samples * places:,} vectors"
        return [
            f"model.latent.quantizer.size: {self.quantizer.learned:,} codes, but {have}; use at most so many"
        ]

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

    made: Rebuilt
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
        made = rebuilt(self.decoder, quantized.straight_through)
        return Coded(made, quantized.codes_Bhw, quantized.loss_B, z_BChw.detach())

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
        super().__init__(
            parts, data, lambda: VqAutoencoder(parts.network, latent, data), self._loss, self._made
        )
        self._latent = latent

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Distance of the images plus the term that keeps codes and latents together."""
        x_BCHW = batch["image"]
        coded = self._coded(nets, batch, progress)
        apart = partial(distance, self._latent.reconstruction)
        sharp = self.sharpening.loss(nets, coded.made, x_BCHW, apart, progress)
        metrics = {
            **sharp.metrics,
            "quantizer": coded.loss_B.detach(),
            "different_codes": _different(coded.codes_Bhw),
            **self._code_metrics(progress),
        }
        sums = {**sharp.sums, **self._code_sums(coded, progress, rng)}
        return LossOut(sharp.loss_B + coded.loss_B, metrics, sums)

    def _made(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """A reconstruction."""
        return self._coded(nets, batch, progress).made.image_BCHW

    def _coded(self, nets: Nets, batch: Batch, progress: Progress) -> Coded:
        coded: Coded = nets["network"](batch["image"])
        return coded

    def _code_metrics(self, progress: Progress) -> Mapping[str, Tensor]:
        return {}

    def _code_sums(self, coded: Coded, progress: Progress, rng: Rng) -> Mapping[str, Tensor]:
        return {}


class StatefulVqFamily(Stateful, VqAutoencoderFamily):
    """The same with a codebook that follows the latents, counted codes, or a weight that adapts.

    The network keeps the codebook of its last step, so that it is complete as a first stage.
    """

    def __init__(self, parts: Parts, latent: VqLatent, data: DataSpec) -> None:
        super().__init__(parts, latent, data)
        quantizer = latent.quantizer
        self._following = quantizer if isinstance(quantizer, FollowingConfig) else None
        self._use = CodeUse(quantizer) if latent.code_use and self._following is None else None
        state_parts: list[StatePart] = [parts.sharpening]
        if self._following is not None:
            state_parts.append(_Following(self._following, latent.channels))
        if self._use is not None:
            state_parts.append(self._use)
        self.state_parts = state_parts

    def _coded(self, nets: Nets, batch: Batch, progress: Progress) -> Coded:
        codebook = None if self._following is None else self._following.codebook(progress.state)
        coded: Coded = nets["network"](batch["image"], codebook)
        return coded

    def _code_metrics(self, progress: Progress) -> Mapping[str, Tensor]:
        counts = self._following or self._use
        return {} if counts is None else counts.metrics(progress.state)

    def _code_sums(self, coded: Coded, progress: Progress, rng: Rng) -> Mapping[str, Tensor]:
        if self._use is not None:
            return self._use.sums(coded.codes_Bhw)
        if self._following is None:
            return {}
        height, width = coded.codes_Bhw.shape[1:]
        draws_Bhw = self._following.draws(rng, (height, width), progress.batch)
        return self._following.sums(coded.z_BChw, coded.codes_Bhw, draws_Bhw)


class _Following:
    """The codebook as a part of the state."""

    def __init__(self, quantizer: FollowingConfig, channels: int) -> None:
        self._quantizer = quantizer
        self.state = quantizer.state(channels)

    def advance(self, state: State, sums: State) -> State:
        """The codebook after a step; as it is where no latents were seen."""
        mine = {name: state[name] for name in self.state}
        return self._quantizer.advance(mine, sums) if "codes.count" in sums else mine


def _different(codes_Bhw: Tensor) -> Tensor:
    """The number of different codes that each image uses, [B]."""
    ordered = codes_Bhw.flatten(1).sort(dim=1).values
    return (ordered.diff(dim=1) != 0).sum(dim=1).float() + 1


COMPONENT = VqLatent
