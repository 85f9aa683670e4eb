"""An autoencoder of diffusers, from a folder: AutoencoderKL, AutoencoderDC or AutoencoderTiny.

As a first stage it is used as it is: `model.first_stage: {folder: /models/sd, subfolder: vae}`. Trained
itself, it starts from the folder's weights. Latents are scaled and shifted as the library's pipelines do:
(z - shift_factor) * scaling_factor.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets, Trainable
from sfumato.core.first_stage import Latent
from sfumato.core.pretrained import LibraryModel, Pretrained
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.stored import StageSpec
from sfumato.errors import ConfigError
from sfumato.families.vae.autoencoder import AutoencoderFamily, distance
from sfumato.families.vae.coders import NetworkConfig
from sfumato.families.vae.latents import LatentConfig, Parts
from sfumato.layers import library_networks

KNOWN = ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny")


class LibraryLatent(LatentConfig):
    """The latents of an autoencoder of diffusers, from a folder."""

    uses_network: ClassVar[bool] = False
    kind: Literal["library"] = Field("library", description="Selects an autoencoder of diffusers.")
    source: Pretrained = Field(
        description="Its folder: {folder: /models/sd, subfolder: vae}, with config.json and *.safetensors."
    )
    reconstruction: Literal["l1", "l2"] = Field("l1", description="Distance of images, if it is trained.")

    @classmethod
    def tiny(cls) -> Self:
        """An AutoencoderKL of one level with its initial weights."""
        config = {"in_channels": 1, "out_channels": 1, "block_out_channels": [4], "norm_num_groups": 2}
        model = LibraryModel(library="diffusers", name="AutoencoderKL", config=config)
        return cls(source=Pretrained(library=model))

    def build(self, parts: Parts, data: DataSpec) -> LibraryFamily:
        """Training from the folder's weights."""
        return LibraryFamily(parts, self, data)

    def stage(self, network: NetworkConfig, data: DataSpec) -> StageSpec:
        """The network for images of any size, with the folder's weights."""
        model = _described(self.source)
        return StageSpec(
            network="ema",
            build=partial(LibraryAutoencoder, model),
            latent=_latent_shape(model.model_dump_json(), data.shape),
            weights=self.source.weights(into="network"),
            any_size=True,
        )

    def problems(self, network: NetworkConfig, data: DataSpec) -> list[str]:
        """Another kind of network, channels or sides that it does not take."""
        try:
            latent = self.stage(network, data).latent
        except ConfigError as error:
            return [f"model.latent.source.{line}" for line in error.problems]
        whole = all(side % grid == 0 for side, grid in zip(data.shape[1:], latent[1:], strict=True))
        size = f"{data.width}x{data.height}"
        return [] if whole else [f"model.latent.source: its grid does not divide images of {size}"]


def of_folder(source: Pretrained) -> dict[str, Any]:
    """The settings of a vae that is this folder's autoencoder. Raises ConfigError for another network."""
    _described(source)
    latent = {"kind": "library", "source": source.model_dump(mode="json", exclude_defaults=True)}
    return {"family": "vae", "condition": "none", "latent": latent}


class LibraryAutoencoder(nn.Module):
    """Implements `core.first_stage.FirstStage` with a network of diffusers."""

    def __init__(self, model: LibraryModel) -> None:
        super().__init__()
        self.network: Any = library_networks.build(model)
        self._scale = float(model.config.get("scaling_factor") or 1.0)
        self._shift = float(model.config.get("shift_factor") or 0.0)

    def forward(self, x_BCHW: Tensor, noise_BChw: Tensor) -> Tensor:
        """The reconstruction from a draw of the latents."""
        return self._decoded(self.encode(x_BCHW).sample(noise_BChw))

    def encode(self, image_BCHW: Tensor) -> Latent:
        """Mean and standard deviation of the latents, [B, C, h, w] each, scaled."""
        found = self.network.encode(image_BCHW)
        if hasattr(found, "latent_dist"):
            mean, std = found.latent_dist.mean.float(), found.latent_dist.std.float()
        else:
            mean = (found.latent if hasattr(found, "latent") else found.latents).float()
            std = torch.zeros_like(mean)
        return Latent((mean - self._shift) * self._scale, std * self._scale)

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        return self._decoded(latent_BChw).clamp(-1, 1)

    def in_diffusers(self, scale: float) -> Any:
        """The network itself, whose factor on latents becomes `scale` times its own; only an AutoencoderKL.

        Raises ConfigError for another one.
        """
        from diffusers import AutoencoderKL

        if not isinstance(self.network, AutoencoderKL):
            raise ConfigError(
                f"diffusers' pipelines decode by an AutoencoderKL, not by a {type(self.network).__name__}"
            )
        if scale == 1:
            return self.network
        copy = AutoencoderKL.from_config({**self.network.config, "scaling_factor": self._scale * scale})
        copy.load_state_dict(self.network.state_dict())
        return copy.eval()

    def _decoded(self, latent_BChw: Tensor) -> Tensor:
        image: Tensor = self.network.decode(latent_BChw / self._scale + self._shift).sample
        return image.float()


class LibraryFamily(AutoencoderFamily):
    """Trains a `LibraryAutoencoder` further."""

    def __init__(self, parts: Parts, latent: LibraryLatent, data: DataSpec) -> None:
        model = _described(latent.source)
        super().__init__(parts, data, partial(LibraryAutoencoder, model), self._loss, self._made)
        self.nets = {
            **self.nets,
            "network": Trainable(
                build=partial(LibraryAutoencoder, model),
                optimizer=parts.optimizer,
                weights=latent.source.weights(into="network"),
            ),
        }
        self._latent = latent
        self._shape = _latent_shape(model.model_dump_json(), data.shape)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Distance of the images."""
        return LossOut(
            distance(self._latent.reconstruction, batch["image"], self._made(nets, batch, progress, rng))
        )

    def _made(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """A reconstruction from a draw of the latents."""
        made: Tensor = nets["network"](batch["image"], rng.normal(*self._shape))
        return made


def _described(source: Pretrained) -> LibraryModel:
    """The folder's network. Raises ConfigError if it is none of those known here."""
    model = source.library
    if model is None:
        library_networks.opened(source)
        raise AssertionError("opened() says what is wrong")
    if model.name not in KNOWN:
        known = f"{', '.join(KNOWN[:-1])} and {KNOWN[-1]}"
        raise ConfigError(f"folder: holds a {model.name}; first stages are {known}")
    return model


@lru_cache(maxsize=32)
def _latent_shape(model: str, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, h, w) of an image's latents, found without memory or arithmetic.

    Raises ConfigError for images that the network does not take.
    """
    with torch.device("meta"), torch.no_grad():
        network = LibraryAutoencoder(LibraryModel.model_validate_json(model))
        try:
            channels, height, width = network.encode(torch.zeros(1, *shape)).mean.shape[1:]
        except RuntimeError:
            size = "x".join(map(str, shape))
            raise ConfigError(f"folder: its network takes no images of {size} (CxHxW)") from None
    return channels, height, width


COMPONENT = LibraryLatent
