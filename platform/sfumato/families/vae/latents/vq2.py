"""VQ-VAE-2 (Razavi, van den Oord, Vinyals 2019): a coarse grid of codes, and a fine one given the coarse."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

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
    Quantizer,
    QuantizerConfig,
)
from sfumato.families.vae.quantizers.ema import EmaCodebook
from sfumato.families.vae.sharpening import Rebuilt, rebuilt

LEVELS = ("top", "bottom")


class Vq2Latent(LatentConfig):
    """Two grids of codes, the top one half as wide: VQ-VAE-2 (Razavi et al. 2019)."""

    sharpens: ClassVar[bool] = True
    kind: Literal["vq2"] = Field("vq2", description="Selects the quantised autoencoder of two levels.")
    channels: int = Field(8, ge=1, description="Numbers at each position of a grid before quantisation.")
    quantizer: Annotated[QuantizerConfig, QUANTIZERS] = Field(
        EmaCodebook(), description="How a position becomes a code; each level has its own codebook."
    )
    reconstruction: Literal["l1", "l2"] = Field("l2", description="Distance of images.")

    @classmethod
    def tiny(cls) -> Self:
        """Two channels, 16 codes."""
        return cls(channels=2, quantizer=EmaCodebook.tiny())

    def build(self, parts: Parts, data: DataSpec) -> Vq2Family:
        """A quantised autoencoder."""
        return Vq2Family(parts, self, data)

    def stage(self, network: NetworkConfig, data: DataSpec) -> StageSpec:
        """The averaged network; its latents are those of both levels, its codes are not one grid."""
        factor = network.factor
        return StageSpec(
            network="ema",
            build=lambda: Vq2Autoencoder(network, self, data),
            latent=(2 * self.channels, data.height // factor, data.width // factor),
        )

    def problems(self, network: NetworkConfig, data: DataSpec) -> list[str]:
        """Grids that cannot be halved once more."""
        return [
            f"model.network.channels: the {name} of {side} leaves a grid of {side // network.factor}, which "
            f"latent.kind=vq2 halves; use a {name} of {max(1, round(side / twice)) * twice}"
            for twice in (2 * network.factor,)
            for name, side in (("height", data.height), ("width", data.width))
            if side % twice
        ]


class Coded2(NamedTuple):
    """The result of a pass through the network; the top level comes first."""

    made: Rebuilt
    quantized: tuple[Quantized, Quantized]
    z_BChw: tuple[Tensor, Tensor]


class Vq2Autoencoder(nn.Module):
    """Implements `core.first_stage.FirstStage`; latents hold the bottom level and the enlarged top level."""

    def __init__(self, network: NetworkConfig, latent: Vq2Latent, data: DataSpec) -> None:
        super().__init__()
        width, channels = network.channels[-1], latent.channels
        half = network.model_copy(update={"channels": (width, width), "mid_attention": False})
        self.encoder = encoder(network, data.channels, width)
        self.top_encoder = encoder(half, width, channels)
        self.top_decoder = decoder(half, channels, width)
        self.join = nn.Conv2d(2 * width, channels, 1)
        self.top = latent.quantizer.build(channels)
        self.bottom = latent.quantizer.build(channels)
        self.decoder = decoder(network, 2 * channels, data.channels)

    def forward(self, x_BCHW: Tensor, books: Mapping[str, Codebook] | None = None) -> Coded2:
        """Encode, quantise and decode, by codebooks that are state of the family where there are any."""
        for name, book in (books or {}).items():
            quantizer = getattr(self, name)
            assert isinstance(quantizer, Quantizer)
            quantizer.use(book)
        top_z, top, bottom_z = self._encode(x_BCHW)
        bottom: Quantized = self.bottom(bottom_z)
        made = rebuilt(self.decoder, _side_by_side(bottom.straight_through, top.straight_through))
        return Coded2(made, (top, bottom), (top_z.detach(), bottom_z.detach()))

    def encode(self, image_BCHW: Tensor) -> Latent:
        """The latents before quantisation, [B, 2 C, h, w]: bottom, and top with each position four times."""
        top_z, _, bottom_z = self._encode(image_BCHW)
        z_BChw = _side_by_side(bottom_z, top_z).float()
        return Latent(z_BChw, torch.zeros_like(z_BChw))

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] from such latents, after their quantisation."""
        bottom_z, top_z = latent_BChw.chunk(2, dim=1)
        top: Quantized = self.top(F.avg_pool2d(top_z, 2))
        bottom: Quantized = self.bottom(bottom_z)
        both = _side_by_side(bottom.straight_through, top.straight_through)
        return rebuilt(self.decoder, both).image_BCHW.clamp(-1, 1)

    def _encode(self, x_BCHW: Tensor) -> tuple[Tensor, Quantized, Tensor]:
        """The top level's latents and their codes, and the bottom level's latents given these."""
        features = self.encoder(x_BCHW)
        top_z: Tensor = self.top_encoder(features)
        top: Quantized = self.top(top_z)
        given = self.top_decoder(top.straight_through)
        return top_z, top, self.join(torch.cat([features, given], dim=1))


class Vq2Family(Stateful, AutoencoderFamily):
    """Trains a `Vq2Autoencoder`."""

    def __init__(self, parts: Parts, latent: Vq2Latent, data: DataSpec) -> None:
        super().__init__(
            parts, data, lambda: Vq2Autoencoder(parts.network, latent, data), self._loss, self._made
        )
        self._latent = latent
        self._levels = [_Level(latent, name) for name in LEVELS]
        self.state_parts: list[StatePart] = [parts.sharpening, *self._levels]

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Distance of the images plus each level's term that keeps codes and latents together."""
        x_BCHW = batch["image"]
        coded = self._coded(nets, batch, progress)
        apart = partial(distance, self._latent.reconstruction)
        sharp = self.sharpening.loss(nets, coded.made, x_BCHW, apart, progress)
        loss_B, metrics, sums = sharp.loss_B, dict(sharp.metrics), dict(sharp.sums)
        for level, found, z_BChw in zip(self._levels, coded.quantized, coded.z_BChw, strict=True):
            loss_B = loss_B + found.loss_B
            metrics |= {f"{level.name}_quantizer": found.loss_B.detach(), **level.metrics(progress.state)}
            sums |= level.sums(found.codes_Bhw, z_BChw, progress, rng)
        return LossOut(loss_B, metrics, sums)

    def _made(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """A reconstruction."""
        return self._coded(nets, batch, progress).made.image_BCHW

    def _coded(self, nets: Nets, batch: Batch, progress: Progress) -> Coded2:
        books = {
            level.name: book for level in self._levels if (book := level.codebook(progress.state)) is not None
        }
        coded: Coded2 = nets["network"](batch["image"], books)
        return coded


class _Level:
    """What the state holds of a level: its codebook where it follows the latents, or the use of its codes."""

    def __init__(self, latent: Vq2Latent, name: str) -> None:
        self.name = name
        quantizer = latent.quantizer
        self._following = quantizer if isinstance(quantizer, FollowingConfig) else None
        self._use = CodeUse(quantizer)
        inner = self._use.state if self._following is None else self._following.state(latent.channels)
        self.state: State = self._named(inner)

    def advance(self, state: State, sums: State) -> State:
        """After a step; as it is where no latents were seen."""
        mine, seen = self._own(state), self._own(sums)
        if self._following is None:
            return self._named(self._use.advance(mine, seen))
        return self._named(self._following.advance(mine, seen) if seen else mine)

    def codebook(self, state: State) -> Codebook | None:
        """The vectors that a step quantises by, if they are state."""
        return None if self._following is None else self._following.codebook(self._own(state))

    def metrics(self, state: State) -> dict[str, Tensor]:
        """How the codes are used."""
        counts = self._following or self._use
        return {f"{self.name}_{name}": value for name, value in counts.metrics(self._own(state)).items()}

    def sums(self, codes_Bhw: Tensor, z_BChw: Tensor, progress: Progress, rng: Rng) -> State:
        """The rows' contribution."""
        if self._following is None:
            return self._named(self._use.sums(codes_Bhw))
        height, width = codes_Bhw.shape[1:]
        draws_Bhw = self._following.draws(rng, (height, width), progress.batch)
        return self._named(self._following.sums(z_BChw, codes_Bhw, draws_Bhw))

    def _named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{self.name}.{name}": value for name, value in values.items()}

    def _own(self, values: State) -> dict[str, Tensor]:
        first = f"{self.name}."
        return {name[len(first) :]: value for name, value in values.items() if name.startswith(first)}


def _side_by_side(bottom_BChw: Tensor, top_BChw: Tensor) -> Tensor:
    return torch.cat([bottom_BChw, F.interpolate(top_BChw, scale_factor=2)], dim=1)


COMPONENT = Vq2Latent
