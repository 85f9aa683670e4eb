"""The KL autoencoder of latent diffusion (Rombach et al. 2022, App. G)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets
from sfumato.core.first_stage import Latent
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.stored import StageSpec
from sfumato.errors import ConfigError
from sfumato.families.vae.autoencoder import AutoencoderFamily, Stateful, distance
from sfumato.families.vae.coders import NetworkConfig, decoder, encoder
from sfumato.families.vae.equivariance import Change
from sfumato.families.vae.latents import LatentConfig, Parts
from sfumato.families.vae.posterior import Posterior
from sfumato.families.vae.sharpening import Rebuilt, rebuilt


class KlLatent(LatentConfig):
    """A grid of vectors, hardly regularised: the KL autoencoder of latent diffusion (Rombach et al. 2022)."""

    sharpens: ClassVar[bool] = True
    kind: Literal["kl"] = Field("kl", description="Selects the KL autoencoder.")
    channels: int = Field(4, ge=1, description="Numbers at each position of the grid.")
    kl_weight: float = Field(
        1e-6, ge=0, description="Weight of the KL term, both terms summed over an image."
    )
    reconstruction: Literal["l1", "l2"] = Field("l1", description="Distance of images.")
    equivariance: float = Field(
        0.0,
        ge=0,
        exclude_if=lambda value: not value,
        description="Weight of the reconstruction from turned and smaller latents (EQ-VAE, Kouzelis et al. "
        "2025); 1 is theirs, 0 leaves it out. One more pass of the decoder.",
    )

    @classmethod
    def tiny(cls) -> Self:
        """Two channels."""
        return cls(channels=2)

    def build(self, parts: Parts, data: DataSpec) -> KlAutoencoderFamily:
        """A KL autoencoder."""
        return (StatefulKlFamily if parts.sharpening.state else KlAutoencoderFamily)(parts, self, data)

    def stage(self, network: NetworkConfig, data: DataSpec) -> StageSpec:
        """The averaged network and its grid."""
        factor = network.factor
        return StageSpec(
            network="ema",
            build=lambda: KlAutoencoder(network, self, data),
            latent=(self.channels, data.height // factor, data.width // factor),
        )


class Coded(NamedTuple):
    """What a pass gives."""

    made: Rebuilt
    mean: Tensor
    logvar: Tensor
    changed_BCHW: Tensor | None


class KlAutoencoder(nn.Module):
    """Implements `core.first_stage.FirstStage`: latents [B, C, h, w] under a diagonal Gaussian."""

    def __init__(self, network: NetworkConfig, latent: KlLatent, data: DataSpec) -> None:
        super().__init__()
        self._config, self._latent, self._data = network, latent, data
        self.encoder = encoder(network, data.channels, 2 * latent.channels)
        self.decoder = decoder(network, latent.channels, data.channels)

    def forward(self, x_BCHW: Tensor, noise_BChw: Tensor, change: Change | None = None) -> Coded:
        """Reconstruction from a draw of the latents, their mean and their log-variance; with `change`, also
        the picture from the changed draw."""
        posterior = Posterior.of(self.encoder(x_BCHW))
        z_BChw = posterior.sample(noise_BChw)
        made = rebuilt(self.decoder, z_BChw)
        changed = None if change is None else self.decoder(change.of_latent(z_BChw)).float()
        return Coded(made, posterior.mean, posterior.logvar, changed)

    def encode(self, image_BCHW: Tensor) -> Latent:
        """Mean and standard deviation of the latents, [B, C, h, w] each."""
        posterior = Posterior.of(self.encoder(image_BCHW))
        return Latent(posterior.mean, posterior.std)

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        output: Tensor = self.decoder(latent_BChw)
        return output.float().clamp(-1, 1)

    def in_diffusers(self, scale: float) -> Any:
        """diffusers' `AutoencoderKL` with these weights; implements `core.first_stage.InDiffusers`.

        Raises ConfigError for a residual network, of which diffusers has none with a distribution.
        """
        from diffusers import AutoencoderKL

        if self._config.residual:
            raise ConfigError(
                "diffusers has no autoencoder like one with model.network.residual=true; use --format "
                "safetensors"
            )
        config, data, levels = self._config, self._data, len(self._config.channels)
        found = AutoencoderKL(
            in_channels=data.channels,
            out_channels=data.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            latent_channels=self._latent.channels,
            norm_num_groups=config.norm_groups,
            sample_size=max(data.height, data.width),
            scaling_factor=scale,
            shift_factor=0.0,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=config.mid_attention,
        )
        found.load_state_dict(self.state_dict())
        return found.eval()


class KlAutoencoderFamily(AutoencoderFamily):
    """Trains a `KlAutoencoder`."""

    def __init__(self, parts: Parts, latent: KlLatent, data: DataSpec) -> None:
        super().__init__(
            parts, data, lambda: KlAutoencoder(parts.network, latent, data), self._loss, self._made
        )
        self._latent = latent
        self._dims = math.prod(data.shape)
        factor = parts.network.factor
        self._grid = (latent.channels, data.height // factor, data.width // factor)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Distance of the images plus the weighted KL term, both per dimension of the image."""
        x_BCHW = batch["image"]
        weight, factor = self._latent.equivariance, x_BCHW.shape[2] // self._grid[1]
        change = Change.at(progress, self._grid[1:], factor) if weight else None
        made, mean, logvar, changed_BCHW = nets["network"](x_BCHW, rng.normal(*self._grid), change)
        apart = partial(distance, self._latent.reconstruction)
        sharp = self.sharpening.loss(nets, made, x_BCHW, apart, progress)
        kl_B = Posterior(mean, logvar).kl().flatten(1).sum(dim=1)
        loss_B = sharp.loss_B + self._latent.kl_weight * kl_B / self._dims
        metrics = {**sharp.metrics, "kl_nats": kl_B.detach()}
        if change is not None:
            apart_B = apart(change.of_image(x_BCHW), changed_BCHW)
            loss_B = loss_B + weight * apart_B
            metrics["equivariance"] = apart_B.detach()
        return LossOut(loss_B, metrics, sharp.sums)

    def _made(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """A reconstruction from a draw of the latents."""
        coded: Coded = nets["network"](batch["image"], rng.normal(*self._grid))
        return coded.made.image_BCHW


class StatefulKlFamily(Stateful, KlAutoencoderFamily):
    """The same with a discriminator whose weight adapts."""

    def __init__(self, parts: Parts, latent: KlLatent, data: DataSpec) -> None:
        super().__init__(parts, latent, data)
        self.state_parts = [parts.sharpening]


COMPONENT = KlLatent
