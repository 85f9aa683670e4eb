"""The Gaussian VAE of texts: the pooled text where that of classes has a class."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.vae.latents import Parts
from sfumato.families.vae.latents.gaussian import GaussianLatent, GaussianNetwork, GaussianVae
from sfumato.text.config import TextConfig
from sfumato.text.network import TextConditioned
from sfumato.text.pooled import PooledTexts


class TextGaussianLatent(GaussianLatent):
    """A VAE that samples for a text: encoder and decoder see the pooled text."""

    takes_texts: ClassVar[bool] = True
    kind: Literal["gaussian_text"] = Field("gaussian_text", description="Selects it.")  # type: ignore[assignment]

    def build(self, parts: Parts, data: DataSpec) -> TextGaussianVae:
        """A VAE that draws."""
        assert parts.text is not None, "problems() asks for it"
        return TextGaussianVae(parts, self, data, parts.text)


class TextGaussianNetwork(GaussianNetwork):
    """As `GaussianNetwork`, of pooled texts [B, P] instead of classes."""

    def _with_class(self, features_BF: Tensor, label_B: Tensor | None) -> Tensor:
        assert label_B is not None
        return torch.cat([features_BF, label_B.to(features_BF.dtype)], dim=1)


class TextGaussianVae(GaussianVae):
    """As `GaussianVae`."""

    def __init__(self, parts: Parts, latent: TextGaussianLatent, data: DataSpec, text: TextConfig) -> None:
        size = text.shape().pooled
        super().__init__(replace(parts, classes=size), latent, data)
        self._text = PooledTexts(text)

        def build() -> TextConditioned:
            return self._text.wrap(TextGaussianNetwork(replace(parts, classes=size), latent, data))

        self.nets = {
            **self._text.frozen,
            "network": Trainable(build=build, optimizer=parts.optimizer),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
        }
        self.samplers = (*self.samplers, *self._text.frozen)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch with the inputs of its texts."""
        return self._text.prepare(nets, batch, rng)

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """As `GaussianVae.sample`; without texts, for the empty one."""
        return super().sample(self._text.inner(nets), self._text.asked(nets, request), progress, rng)

    def decode_latents(self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress) -> Tensor:
        """As `GaussianVae.decode_latents`."""
        asked = self._text.asked(nets, request)
        return super().decode_latents(self._text.inner(nets), z_ND, asked, progress)

    def encode_latents(
        self, nets: Nets, image_NCHW: Tensor, request: SampleRequest, progress: Progress
    ) -> Tensor:
        """As `GaussianVae.encode_latents`."""
        asked = self._text.asked(nets, request)
        return super().encode_latents(self._text.inner(nets), image_NCHW, asked, progress)

    def reconstruct(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """As `GaussianVae.reconstruct`, given the texts."""
        return super().reconstruct(self._text.inner(nets), self._told(nets, batch), progress, rng)

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """As `GaussianVae.bits_per_dim`, given the texts."""
        return super().bits_per_dim(self._text.inner(nets), self._told(nets, batch), progress, rng)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return super()._loss(nets, self._text.labelled(batch), progress, rng)

    def _told(self, nets: Nets, batch: Batch) -> Batch:
        texts = list(batch[self._text.condition.config.column])
        return {**batch, "label": self._text.vectors(nets, texts)}


COMPONENT = TextGaussianLatent
