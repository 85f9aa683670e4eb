"""Latent interpolation: the images between samples of a VAE, a flow or a GAN.

The way from z to z' is straight, (1 - t) z + t z', or along a great circle (Shoemake 1985; White 2016, sec.
2.1), which keeps the norms that normal vectors of many dimensions have:

    sin((1 - t) w) / sin(w) z + sin(t w) / sin(w) z',   cos(w) = z z' / (|z| |z'|)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.conditions import Source, conditions_of
from sfumato.core.config import Config
from sfumato.core.family import HasLatent, SampleRequest
from sfumato.core.rng import SampleRng
from sfumato.editing.operations import Block, Operation
from sfumato.errors import ConfigError
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import Images, to_uint8


class Interpolate(Operation):
    """From sample to sample, and back to the first."""

    reads: ClassVar[bool] = False
    kind: Literal["interpolate"] = Field("interpolate", description="Selects images between samples.")
    ends: int = Field(4, ge=2, description="Samples that the way leads through: 0 to ends - 1 of the seed.")
    frames: int = Field(8, ge=1, description="Images from each sample to the next, the sample among them.")
    way: Literal["spherical", "linear"] = Field(
        "spherical", description="Along a great circle, or straight through."
    )

    @property
    def count(self) -> int:
        """One row an end."""
        return self.ends

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model whose images are no smooth function of one normal vector."""
        if isinstance(model.family, HasLatent):
            return []
        return [f"--by interpolate: a {model.config.family} model has no latent vector; use vae, flow or gan"]

    def edited(self, model: Generator, block: Block) -> Tensor:
        """Never called: it reads no images."""
        raise AssertionError("it reads no images")

    @torch.no_grad()
    def drawn(self, model: Generator, source: Source, options: Config, seed: int) -> Iterator[Images]:
        """For each end its frames, uint8 [frames, H, W, C]. Raises ConfigError for another kind of model."""
        family = model.family
        if not isinstance(family, HasLatent):
            raise ConfigError(*self.problems(model, options))
        rng = SampleRng(seed, range(self.ends))
        ends_ND = family.latents(model.nets, options, model.progress, rng)
        for number, start in enumerate(ends_ND):
            z_FD = between(start, ends_ND[(number + 1) % self.ends], self.frames, self.way)
            images = []
            for rows in torch.split(
                z_FD, model.block
            ):  # filled up, so that rounding does not depend on the frames
                filled = torch.cat([rows, rows[:1].expand(model.block - len(rows), -1)])
                conditions = conditions_of(source, [number] * model.block, model.conditions, model.data)
                request = SampleRequest(num=model.block, conditions=conditions, options=options)
                found = family.decode_latents(model.nets, filled, request, model.progress)
                images.append(found[: len(rows)])
            yield to_uint8(torch.cat(images))


def between(start_D: Tensor, end_D: Tensor, frames: int, way: str) -> Tensor:
    """Points from the one vector towards the other, which is not among them, [frames, D]."""
    t_F1 = (torch.arange(frames, dtype=torch.float64, device=start_D.device) / frames).unsqueeze(1)
    a, b = start_D.double(), end_D.double()
    if way == "linear":
        return ((1 - t_F1) * a + t_F1 * b).float()
    angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if torch.sin(angle) < 1e-6:  # the same direction, or the opposite one, between which any circle leads
        return ((1 - t_F1) * a + t_F1 * b).float()
    return ((torch.sin((1 - t_F1) * angle) * a + torch.sin(t_F1 * angle) * b) / torch.sin(angle)).float()


COMPONENT = Interpolate
