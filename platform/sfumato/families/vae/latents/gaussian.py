"""The Gaussian VAE: a vector of latents with a standard normal prior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.vae.coders import decoder, encoder
from sfumato.families.vae.latents import LatentConfig, Parts
from sfumato.families.vae.likelihoods import LIKELIHOODS, LikelihoodConfig, bits_per_dim
from sfumato.families.vae.likelihoods.logistic import LogisticConfig
from sfumato.families.vae.posterior import Posterior
from sfumato.families.vae.sampling import SamplingConfig


class GaussianLatent(LatentConfig):
    """A vector with a standard normal prior: a VAE that samples (Kingma & Welling 2014)."""

    has_prior: ClassVar[bool] = True
    kind: Literal["gaussian"] = Field("gaussian", description="Selects the VAE.")
    dim: int = Field(32, ge=1, description="Numbers in the vector.")
    beta: float = Field(1.0, ge=0, description="Weight of the KL term (Higgins et al. 2017); 1 is the ELBO.")
    free_bits: float = Field(
        0.0,
        ge=0,
        description="Nats of each latent number that cost nothing in training (Kingma et al. 2016).",
    )
    warmup_images: int = Field(
        0, ge=0, description="Images over which the weight of the KL term rises from 0."
    )
    likelihood: Annotated[LikelihoodConfig, LIKELIHOODS] = Field(
        LogisticConfig(), description="The distribution of pixels given the vector."
    )
    importance_samples: int = Field(
        1,
        ge=1,
        description="Draws in `bits_per_dim`: 1 gives the ELBO, more the importance-weighted bound "
        "(Burda et al. 2016). Training is not affected.",
    )

    @classmethod
    def tiny(cls) -> Self:
        """Two numbers."""
        return cls(dim=2)

    def build(self, parts: Parts, data: DataSpec) -> GaussianVae:
        """A VAE that draws."""
        return GaussianVae(parts, self, data)


class GaussianNetwork(nn.Module):
    """Encoder to q(z | x, y), decoder to the parameters of p(x | z, y); class y as a one-hot vector."""

    def __init__(self, parts: Parts, latent: GaussianLatent, data: DataSpec) -> None:
        super().__init__()
        factor, width, classes = parts.network.factor, parts.network.channels[-1], parts.classes
        self._classes = classes
        self._grid = (width, data.height // factor, data.width // factor)
        flat = math.prod(self._grid)
        self.likelihood = latent.likelihood.build(data.channels)
        self.encoder = encoder(parts.network, data.channels, width)
        self.to_posterior = nn.Linear(flat + classes, 2 * latent.dim)
        self.from_latent = nn.Linear(latent.dim + classes, flat)
        self.decoder = decoder(parts.network, width, self.likelihood.outputs)

    def forward(
        self, x_BCHW: Tensor, noise_BD: Tensor, label_B: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x | z) of a draw of z, [B], and mean and log-variance of q(z | x, y), [B, D] each."""
        posterior = self.encode(x_BCHW, label_B)
        return self.log_prob(x_BCHW, posterior.sample(noise_BD), label_B), posterior.mean, posterior.logvar

    def encode(self, x_BCHW: Tensor, label_B: Tensor | None) -> Posterior:
        features = self.encoder(x_BCHW).flatten(1)
        return Posterior.of(self.to_posterior(self._with_class(features, label_B)))

    def decode(self, z_BD: Tensor, label_B: Tensor | None) -> Tensor:
        """The parameters of p(x | z, y), [B, O, H, W] float32."""
        features = self.from_latent(self._with_class(z_BD, label_B)).view(-1, *self._grid)
        output: Tensor = self.decoder(features).float()
        return output

    def log_prob(self, x_BCHW: Tensor, z_BD: Tensor, label_B: Tensor | None) -> Tensor:
        """log p(x | z, y) in nats, [B]."""
        return self.likelihood.log_prob(x_BCHW, self.decode(z_BD, label_B))

    def _with_class(self, features_BF: Tensor, label_B: Tensor | None) -> Tensor:
        if not self._classes:
            return features_BF
        assert label_B is not None
        return torch.cat([features_BF, F.one_hot(label_B, self._classes).to(features_BF.dtype)], dim=1)


class GaussianVae:
    """Implements `core.family.Family`, `HasLikelihood`, `HasLatent`, `EncodesLatent` and `Reconstructs`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, parts: Parts, latent: GaussianLatent, data: DataSpec) -> None:
        self._latent = latent
        self._data = data
        self._dims = math.prod(data.shape)
        self._classes = parts.classes
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(
                build=lambda: GaussianNetwork(parts, latent, data),
                optimizer=parts.optimizer,
            ),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
        }
        self.likelihood_of = latent.likelihood.target_is
        self.phases: Sequence[Phase] = (Phase(name="elbo", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]. A conditional model without labels draws classes evenly."""
        options: SamplingConfig = request.options
        network = nets["ema"]
        assert isinstance(network, GaussianNetwork)
        label_N = request.tensor("label")
        z_ND = self.latents(nets, options, progress, rng)
        if self._classes and label_N is None:
            label_N = rng.integers(self._classes)
        output = self._decode(network, z_ND, label_N)
        if options.pixels == "mean":
            return network.likelihood.mean(output)
        return network.likelihood.draw(
            output, rng.uniform(network.likelihood.uniforms, *self._data.shape[1:]).to(output.device)
        )

    def latents(self, nets: Nets, options: SamplingConfig, progress: Progress, rng: SampleRng) -> Tensor:
        """z [N, D] of the prior, times the temperature."""
        return options.temperature * rng.normal(self._latent.dim)

    def decode_latents(self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress) -> Tensor:
        """The expected images [N, C, H, W], also where `sample` would draw pixels around them."""
        network = nets["ema"]
        assert isinstance(network, GaussianNetwork)
        return network.likelihood.mean(self._decode(network, z_ND, request.tensor("label")))

    def encode_latents(
        self, nets: Nets, image_NCHW: Tensor, request: SampleRequest, progress: Progress
    ) -> Tensor:
        """The posterior's means [N, D]."""
        network, label_N = nets["ema"], request.tensor("label")
        assert isinstance(network, GaussianNetwork)
        classes_N = label_N.to(image_NCHW.device) if self._classes and label_N is not None else None
        return network.encode(image_NCHW, classes_N).mean

    def _decode(self, network: GaussianNetwork, z_ND: Tensor, label_N: Tensor | None) -> Tensor:
        device = next(network.parameters()).device
        classes_N = label_N.to(device) if self._classes and label_N is not None else None
        return network.decode(z_ND.to(device), classes_N)

    def reconstruct(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """The expected image at the posterior's mean; draws nothing."""
        network = nets["ema"]
        assert isinstance(network, GaussianNetwork)
        label_B = batch.get("label")
        posterior = network.encode(batch["image"], label_B)
        return network.likelihood.mean(network.decode(posterior.mean, label_B))

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """The negative ELBO, or the importance-weighted bound (Burda et al. 2016, eq. 8), [B].

        Under a Bernoulli likelihood it is that of the binarised image, not of its 256 levels.
        """
        network = nets["ema"]
        assert isinstance(network, GaussianNetwork)
        x_BCHW, label_B = self._latent.likelihood.target(batch["image"], rng), batch.get("label")
        posterior = network.encode(x_BCHW, label_B)
        draws = self._latent.importance_samples
        noise_BKD = rng.normal(draws, self._latent.dim).to(x_BCHW.device)
        if draws == 1:
            log_prob_B = network.log_prob(x_BCHW, posterior.sample(noise_BKD[:, 0]), label_B)
            return bits_per_dim(posterior.kl().sum(dim=1) - log_prob_B, self._dims)
        log_weights = [
            network.log_prob(x_BCHW, posterior.sample(noise_BD), label_B) + posterior.log_ratio(noise_BD)
            for noise_BD in noise_BKD.unbind(dim=1)
        ]
        bound_B = torch.logsumexp(torch.stack(log_weights), dim=0) - math.log(draws)
        return bits_per_dim(-bound_B, self._dims)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """The negative ELBO in nats per dimension, with KL weighted by beta and clamped by free bits."""
        x_BCHW = self._latent.likelihood.target(batch["image"], rng)
        noise_BD = rng.normal(self._latent.dim)
        label_B = batch.get("label") if self._classes else None
        log_prob_B, mean_BD, logvar_BD = nets["network"](x_BCHW, noise_BD, label_B)
        kl_BD = Posterior(mean_BD, logvar_BD).kl()
        counted_B = kl_BD.clamp(min=self._latent.free_bits).sum(dim=1)
        loss_B = (self.kl_weight(progress) * counted_B - log_prob_B) / self._dims
        kl_B = kl_BD.detach().sum(dim=1)
        bits_B = bits_per_dim(kl_B - log_prob_B.detach(), self._dims)
        return LossOut(loss_B, {"kl_nats": kl_B, "bits_per_dim": bits_B})

    def kl_weight(self, progress: Progress) -> float:
        """beta, reached linearly over `warmup_images` (Sønderby et al. 2016)."""
        warmup = self._latent.warmup_images
        return self._latent.beta * (min(1.0, (progress.images + progress.batch) / warmup) if warmup else 1.0)


COMPONENT = GaussianLatent
