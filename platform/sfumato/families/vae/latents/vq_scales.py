"""The multi-scale quantised autoencoder of VAR (Tian, Jiang, Yuan, Peng, Wang 2024, algorithms 1 and 2).

A latent f is a sum of maps of rising resolution. With r = f and, scale by scale, sides p_1 < ... < p_K:

    codes_k = nearest codes of r averaged to p_k x p_k
    h_k     = conv_k(codes' vectors, enlarged)        r <- r - h_k        f^ = h_1 + ... + h_K

All scales share one codebook. The decoder sees f^, with gradients that go straight through to f.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets
from sfumato.core.first_stage import Latent
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.stored import StageSpec
from sfumato.families.vae.autoencoder import AutoencoderFamily, Stateful, distance
from sfumato.families.vae.coders import NetworkConfig, decoder, encoder
from sfumato.families.vae.latents import LatentConfig, Parts
from sfumato.families.vae.sharpening import Rebuilt, rebuilt


class VqScalesLatent(LatentConfig):
    """Grids of codes from coarse to fine that add up: the tokenizer of VAR (Tian et al. 2024)."""

    sharpens: ClassVar[bool] = True
    kind: Literal["vq_scales"] = Field("vq_scales", description="Selects the multi-scale autoencoder.")
    channels: int = Field(32, ge=1, description="Numbers at each position of the grid.")
    size: int = Field(4096, ge=2, description="Number of codes, which all scales share.")
    scales: tuple[int, ...] = Field(
        (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        min_length=1,
        description="Side of every scale's grid; the last is that of the latents.",
    )
    convolutions: int = Field(
        4, ge=1, description="Different convolutions after enlarging, spread over the scales."
    )
    commitment: float = Field(
        0.25, ge=0, description="Weight of the encoder's distance from its codes (van den Oord et al. 2017)."
    )
    reconstruction: Literal["l1", "l2"] = Field("l2", description="Distance of images.")

    @field_validator("scales")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)) or value[0] < 1:
            raise ValueError(f"sides rise from 1 or more, got {list(value)}")
        return value

    @classmethod
    def tiny(cls) -> Self:
        """Four channels, 16 codes, three scales."""
        return cls(channels=4, size=16, scales=(1, 2, 4), convolutions=2)

    def build(self, parts: Parts, data: DataSpec) -> ScalesFamily:
        """A multi-scale autoencoder."""
        return (StatefulScalesFamily if parts.sharpening.state else ScalesFamily)(parts, self, data)

    def stage(self, network: NetworkConfig, data: DataSpec) -> StageSpec:
        """The averaged network, its grid and its scales."""
        factor = network.factor
        return StageSpec(
            network="ema",
            build=lambda: ScalesAutoencoder(network, self, data),
            latent=(self.channels, data.height // factor, data.width // factor),
            scales=self.scales,
            scale_codes=self.size,
        )

    def sample_problems(self, network: NetworkConfig, data: DataSpec, samples: int) -> list[str]:
        """A codebook with more codes than there are vectors."""
        places = sum(side**2 for side in self.scales)
        if self.size <= samples * places:
            return []
        have = f"{samples:,} images of {places:,} places have only {samples * places:,} vectors"
        return [f"model.latent.size: {self.size:,} codes, but {have}; use at most so many"]

    def problems(self, network: NetworkConfig, data: DataSpec) -> list[str]:
        """Grids that are no square, or not that of the last scale."""
        height, width = data.height // network.factor, data.width // network.factor
        if height != width:
            return [f"model.latent.kind: vq_scales needs square images, got {data.width}x{data.height}"]
        if self.scales[-1] == height:
            return []
        fits = [side for side in self.scales if side < height]
        near = [*fits, height]
        last = f"the last is {self.scales[-1]}, but latents have a side of {height}"
        return [f"model.latent.scales: {last}; use {near}"]


class ScaleQuantizer(nn.Module):
    """See the top of the file."""

    def __init__(self, latent: VqScalesLatent) -> None:
        super().__init__()
        self.scales = latent.scales
        self.codebook = nn.Embedding(latent.size, latent.channels)
        nn.init.uniform_(self.codebook.weight, -1 / latent.size, 1 / latent.size)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(latent.channels, latent.channels, 3, padding=1) for _ in range(latent.convolutions)
        )

    def part(self, at: int, codes_Bpp: Tensor) -> Tensor:
        """h of scale `at`, [B, C, h, w]."""
        side = self.scales[-1]
        vectors_BCpp = self.codebook(codes_Bpp).permute(0, 3, 1, 2)
        large_BChw = F.interpolate(vectors_BCpp, (side, side), mode="bicubic")
        last = max(1, len(self.scales) - 1)
        chosen = self.convolutions[round(at / last * (len(self.convolutions) - 1))]
        h_BChw: Tensor = (large_BChw + chosen(large_BChw)) / 2
        return h_BChw

    def forward(self, f_BChw: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The codes [B, p, p] of every scale, and the sum of the maps so far after each."""
        with torch.autocast(f_BChw.device.type, enabled=False):
            rest_BChw = f_BChw.detach().float()
            total_BChw = torch.zeros_like(rest_BChw)
            codes, sums = [], []
            for at, side in enumerate(self.scales):
                z_BCpp = F.interpolate(rest_BChw, (side, side), mode="area")
                codes.append(self._nearest(z_BCpp))
                h_BChw = self.part(at, codes[-1])
                rest_BChw = rest_BChw - h_BChw.detach()
                total_BChw = total_BChw + h_BChw
                sums.append(total_BChw)
        return codes, sums

    def _nearest(self, z_BCpp: Tensor) -> Tensor:
        z_BPC = z_BCpp.flatten(2).transpose(1, 2)
        table_BKC = self.codebook.weight.detach().float().expand(len(z_BPC), -1, -1)
        return torch.cdist(z_BPC, table_BKC).argmin(2).view(len(z_BPC), *z_BCpp.shape[2:])


class Coded(NamedTuple):
    """What a pass gives."""

    made: Rebuilt
    loss_B: Tensor


class ScalesAutoencoder(nn.Module):
    """Implements `core.first_stage.ScaleTokenizer`."""

    def __init__(self, network: NetworkConfig, latent: VqScalesLatent, data: DataSpec) -> None:
        super().__init__()
        self._commitment = latent.commitment
        self.encoder = encoder(network, data.channels, latent.channels)
        self.quantizer = ScaleQuantizer(latent)
        self.decoder = decoder(network, latent.channels, data.channels)

    def forward(self, x_BCHW: Tensor) -> Coded:
        """The reconstruction, and the mean over scales of |f^ - f|^2, which keeps both together."""
        f_BChw = self.encoder(x_BCHW).float()
        _, sums = self.quantizer(f_BChw)
        terms = [
            (total - f_BChw.detach()).square() + self._commitment * (total.detach() - f_BChw).square()
            for total in sums
        ]
        loss_B = torch.stack([term.flatten(1).mean(1) for term in terms]).mean(0)
        straight_BChw = f_BChw + (sums[-1] - f_BChw).detach()
        return Coded(rebuilt(self.decoder, straight_BChw), loss_B)

    def encode(self, image_BCHW: Tensor) -> Latent:
        """The latents before quantisation, which `decode` repeats; their `std` is zero."""
        f_BChw = self.encoder(image_BCHW).float()
        return Latent(f_BChw, torch.zeros_like(f_BChw))

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] from latents, after their quantisation."""
        return self._decoded(self.quantizer(latent_BChw)[1][-1])

    def scale_codes(self, latent_BChw: Tensor) -> Tensor:
        """int64 [B, sum of p^2], scale by scale, each in raster order."""
        return torch.cat([codes_Bpp.flatten(1) for codes_Bpp in self.quantizer(latent_BChw)[0]], 1)

    def scale_inputs(self, codes_BL: Tensor) -> Tensor:
        """What the next scales are told, [B, tokens, C]: of the first k scales, the sums of their maps,
        averaged to the sides of scales 2 to k + 1."""
        scales, found = self.quantizer.scales, []
        for at, total_BChw in enumerate(self._sums(codes_BL)):
            if at + 1 < len(scales):
                small = F.interpolate(total_BChw, (scales[at + 1],) * 2, mode="area")
                found.append(small.flatten(2).transpose(1, 2))
        return torch.cat(found, 1)

    def decode_scales(self, codes_BL: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] of the codes of all scales."""
        return self._decoded(self._sums(codes_BL)[-1])

    def _sums(self, codes_BL: Tensor) -> Sequence[Tensor]:
        found: list[Tensor] = []
        first = 0
        with torch.autocast(codes_BL.device.type, enabled=False):  # as where the codes were found
            for at, side in enumerate(self.quantizer.scales):
                if first == codes_BL.shape[1]:
                    break
                codes_Bpp = codes_BL[:, first : first + side**2].view(-1, side, side)
                h_BChw = self.quantizer.part(at, codes_Bpp)
                found.append(h_BChw if not found else found[-1] + h_BChw)
                first += side**2
        return found

    def _decoded(self, z_BChw: Tensor) -> Tensor:
        output: Tensor = self.decoder(z_BChw)
        return output.float().clamp(-1, 1)


class ScalesFamily(AutoencoderFamily):
    """Trains a `ScalesAutoencoder`."""

    def __init__(self, parts: Parts, latent: VqScalesLatent, data: DataSpec) -> None:
        build = partial(ScalesAutoencoder, parts.network, latent, data)
        super().__init__(parts, data, build, self._loss, self._made)
        self._apart = partial(distance, latent.reconstruction)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Distance of the images plus the term that keeps codes and latents together."""
        coded: Coded = nets["network"](batch["image"])
        sharp = self.sharpening.loss(nets, coded.made, batch["image"], self._apart, progress)
        metrics = {**sharp.metrics, "quantizer": coded.loss_B.detach()}
        return LossOut(sharp.loss_B + coded.loss_B, metrics, sharp.sums)

    def _made(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """A reconstruction."""
        coded: Coded = nets["network"](batch["image"])
        return coded.made.image_BCHW


class StatefulScalesFamily(Stateful, ScalesFamily):
    """The same with a discriminator whose weight adapts."""

    def __init__(self, parts: Parts, latent: VqScalesLatent, data: DataSpec) -> None:
        super().__init__(parts, latent, data)
        self.state_parts = [parts.sharpening]


COMPONENT = VqScalesLatent
