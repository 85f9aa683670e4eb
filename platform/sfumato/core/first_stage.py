"""A trained autoencoder, frozen, as another model's first stage (Esser et al. 2021; Rombach et al. 2022).

A family whose networks can serve as a first stage describes them by a `StageSpec`
(`FamilyConfig.as_first_stage`). A family that builds on one has a field of type `FirstStageConfig` and opens
it. If the field is not called `first_stage`, pass its dotted name as `field`, for messages:

    stage = config.first_stage.open(families.config_class)           # stage.spec.latent is (C, h, w)
    nets = {"first_stage": Frozen(build=stage.spec.build, weights=stage.stored), "network": Trainable(...)}

    x = nets["first_stage"].encode(batch["image"]).sample(rng.normal(*stage.spec.latent))    # in prepare
    image = nets["first_stage"].decode(x)                                                    # in sample

Listing `first_stage` among the networks and in `samplers` makes an exported model self-contained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol, Self, runtime_checkable

from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import FamilyConfig
from sfumato.core.pretrained import IDENTIFIED, Reference, StoredModelCard, card_config
from sfumato.core.stored import StageSpec, StoredNet, Weights
from sfumato.errors import ConfigError


class Latent(NamedTuple):
    """A diagonal Gaussian over the latents of a batch; `std` is zero for a deterministic encoder."""

    mean: Tensor
    """[B, C, h, w] float32."""
    std: Tensor
    """[B, C, h, w] float32, not negative."""

    def sample(self, noise_BChw: Tensor) -> Tensor:
        """mean + std * noise, [B, C, h, w]: a draw if the noise is standard normal."""
        return self.mean + self.std * noise_BChw


@runtime_checkable
class FirstStage(Protocol):
    """An autoencoder; every implementation is an `nn.Module`. Images are [B, C, H, W] float32 in [-1, 1]."""

    def encode(self, image_BCHW: Tensor) -> Latent: ...
    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]; a quantising model quantises the latents first."""
        ...


@runtime_checkable
class Tokenizer(FirstStage, Protocol):
    """An autoencoder with a finite set of codes."""

    def codes(self, image_BCHW: Tensor) -> Tensor:
        """int64 [B, h, w], each in [0, number of codes)."""
        ...

    def decode_codes(self, codes_Bhw: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1]."""
        ...


@runtime_checkable
class ScaleTokenizer(FirstStage, Protocol):
    """An autoencoder whose latents are sums of grids of codes, from coarse to fine."""

    def scale_codes(self, latent_BChw: Tensor) -> Tensor:
        """int64 [B, L], the codes of all scales, one scale after the other, each in raster order."""
        ...

    def scale_inputs(self, codes_BL: Tensor) -> Tensor:
        """From codes of the first k scales, what scales 2 to k + 1 are told, [B, tokens, C]."""
        ...

    def decode_scales(self, codes_BL: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] of the codes of all scales."""
        ...


@runtime_checkable
class InDiffusers(Protocol):
    """A first stage that diffusers has too."""

    def in_diffusers(self, scale: float) -> Any:
        """The same network as a diffusers `AutoencoderKL`, which multiplies latents by `scale`."""
        ...


FIELD = "model.first_stage"
"""The field of recipes for which messages about a first stage are written, if its family names no other."""
LATENT_MEAN, LATENT_STD, CODES = "latent_mean", "latent_std", "codes"
"""Columns of a batch that was encoded in advance."""


def latent_of(stage: FirstStage, batch: Batch) -> Latent:
    """The latents of a batch: from the data (`sfumato precompute`) if present, else from its images."""
    if LATENT_MEAN in batch:
        return Latent(batch[LATENT_MEAN], batch[LATENT_STD])
    return stage.encode(batch["image"])


def codes_of(stage: Tokenizer, batch: Batch) -> Tensor:
    """The codes of a batch, int64 [B, h, w]: from the data if present, else encoded from its images."""
    return batch[CODES] if CODES in batch else stage.codes(batch["image"])


class FirstStageConfig(Reference):
    """The trained run, or the library's autoencoder, that serves as first stage; `digest` and `model` are
    recorded when a run starts."""

    run: Annotated[str, IDENTIFIED] = Field(
        "",
        description="A trained run (name, MLflow id or folder) or a model folder; recorded as the folder. "
        "Without it, `model` is used with its initial weights.",
    )
    digest: str | None = Field(
        None, description="sha256 of the model folder; filled in when a run starts and checked from then on."
    )
    model: Annotated[StoredModelCard | None, IDENTIFIED] = Field(
        None, description="What the first stage is; filled in when a run starts."
    )

    other_data: Annotated[bool, IDENTIFIED] = Field(
        False, description="Accept a first stage trained on another data set than the recipe's."
    )
    folder: Annotated[str, IDENTIFIED] = Field(
        "", description="Instead of a run: a folder of diffusers that holds an autoencoder."
    )
    subfolder: Annotated[str, IDENTIFIED] = Field(
        "", description="The part of `folder` that holds the autoencoder, such as vae."
    )

    tile: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="Encode and decode larger images in pieces of so many pixels, for want of memory; a "
        "quarter of each overlaps. A multiple of the pixels of a place of the latents. null: whole.",
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.run and self.folder:
            raise ValueError("takes one of run and folder, got both")
        if self.subfolder and not self.folder:
            raise ValueError("subfolder has an effect only with folder; leave it out")
        return self

    @property
    def source(self) -> tuple[str, str]:
        return ("folder", self.folder) if self.folder else ("run", self.run)

    @property
    def recorded(self) -> bool:
        return self.model is not None

    def open(
        self, find: Callable[[str], type[FamilyConfig]], data: DataSpec | None = None, *, field: str = FIELD
    ) -> OpenStage:
        """The first stage that its recorded card describes; `find` is `sfumato.families.config_class`.

        One that takes images of any size is described for those of `data`, if given. `field` is its name in
        recipes, empty for a word of the command line. Raises ConfigError if it has not been looked up yet, or
        is not a first stage.
        """
        where = _prefix(field)
        if self.model is None:
            raise ConfigError(f"{where}{self._named} has not been looked up")
        config = card_config(self.model, find, f"{field}.model.config" if field else repr(self.run))
        spec = config.as_first_stage(self.model.data)
        if spec is None:
            raise ConfigError(
                f"{where}{self._named} is a {self.model.family} model without an encoder "
                "that others can use; train an autoencoder (family vae, latent kl or vq)"
            )
        if data is None or not spec.any_size:
            return OpenStage(self, spec, self.model.data)
        return OpenStage(self, config.as_first_stage(data) or spec, data)

    def problems(
        self,
        data: DataSpec,
        find: Callable[[str], type[FamilyConfig]],
        *,
        codes: bool = False,
        field: str = FIELD,
    ) -> list[str]:
        """The reasons why it cannot serve this data, one line each; with `codes`, it must have codes.

        `field` is its name in recipes, as in `open`.
        """
        where = _prefix(field)
        if self.model is None and not (self.run or self.folder):
            return [f"{where}required: a trained run of family vae, or its model folder"]
        try:
            stage = self.open(find, data, field=field)
        except ConfigError as error:
            return list(error.problems)
        if stage.data.shape != data.shape:
            theirs, ours = ("x".join(map(str, spec.shape)) for spec in (stage.data, data))
            found = f"{self._named} was trained on images of {theirs} (CxHxW), the data's are {ours}"
            return [f"{where}{found}; train a first stage on this data"]
        if codes and not stage.spec.num_codes:
            fix = "train a first stage with model.latent.kind=vq"
            return [f"{where}{self._named} has no codes; {fix}"]
        return self._tile_problems(stage, codes, field)

    def _tile_problems(self, stage: OpenStage, codes: bool, field: str) -> list[str]:
        if self.tile is None:
            return []
        if codes:
            return [f"{field}.tile: codes are read whole; leave it out"]
        factor = stage.data.height // stage.spec.latent[1]
        near = max(1, round(self.tile / factor)) * factor
        if self.tile == near:
            return []
        return [f"{field}.tile: a place of the latents has {factor} pixels, got {self.tile}; use {near}"]

    @property
    def _named(self) -> str:
        place = self.run or self.folder
        return repr(place) if place else "the first stage"


def _prefix(field: str) -> str:
    return f"{field}.run: " if field else ""


@dataclass(frozen=True, slots=True)
class OpenStage:
    """A first stage, ready to be built."""

    config: FirstStageConfig
    spec: StageSpec
    data: DataSpec
    """The images it was trained on."""

    @property
    def stored(self) -> Weights | None:
        """The location of its weights; None if it uses initial weights."""
        if self.spec.weights is not None:
            return self.spec.weights
        if not self.config.run or self.config.digest is None:
            return None
        return StoredNet(folder=self.config.run, digest=self.config.digest, network=self.spec.network)
