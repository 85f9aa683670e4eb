"""Modes that are covered, of a mixture of 8 Gaussians on a ring (Metz et al. 2017, sec. 3.1).

A point is an image of two channels and one pixel; inside the networks the plane is larger, as in the
literature. A mode is covered if half of its share of 2,500 samples lies within three standard deviations of
its centre: samples spread evenly over the plane would cover none.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from members import build, view
from torch import Tensor

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.family import SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.networks.mlp import MlpConfig, MlpDiscriminator, MlpGenerator

POINTS = DataSpec(2, 1, 1)
ROWS, SAMPLES = 256, 2_500
RING = torch.tensor([[0.7 * math.cos(at * math.pi / 4), 0.7 * math.sin(at * math.pi / 4)] for at in range(8)])
STD = 0.02
SCALE = 5.0
ADAM = {"name": "adam", "lr": {"peak": 1e-3, "decay": "cosine"}, "betas": [0.0, 0.99]}
GAMMA = 0.004
R1R2 = [{"kind": kind, "every": 1, "joined": True, "weight": GAMMA} for kind in ("r1", "r2")]


class PlaneConfig(MlpConfig):
    """Fully connected networks of points: no image's range, and coordinates of several units."""

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> PlaneGenerator:
        return PlaneGenerator(self, data, latent=latent, classes=classes)

    def build_discriminator(self, data: DataSpec, *, classes: int, bias: bool) -> PlaneDiscriminator:
        return PlaneDiscriminator(self, data, classes=classes, bias=bias)


class PlaneGenerator(MlpGenerator):
    def forward(self, z_BD: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        for layer in self.layers:
            z_BD = torch.nn.functional.leaky_relu(layer(z_BD), 0.2)
        return self.image(z_BD)[:, :, None, None] / SCALE


class PlaneDiscriminator(MlpDiscriminator):
    def features(self, x_BCHW: Tensor, label_B: Tensor, **inputs: Any) -> Tensor:
        return super().features(SCALE * x_BCHW, label_B)


def gan(objective: dict[str, Any], **more: Any) -> GanConfig:
    network = PlaneConfig(widths=(256, 256), discriminator_widths=(256, 256), **more)
    return GanConfig.model_validate(
        {
            "latent": 4,
            "network": network,
            "objective": objective,
            "generator_optimizer": ADAM,
            "discriminator_optimizer": ADAM,
            "ema": {"halflife_images": 20_000},
        }
    )


def trained(config: GanConfig, centres: Tensor, steps: int) -> Tensor:
    """Samples [N, 2] after so many steps of the family's phases, each with its optimizer, in a bare loop."""
    torch.manual_seed(0)
    family = config.build(POINTS)
    nets = build(family)
    optimizers = {
        name: spec.optimizer.build(dict(nets[name].named_parameters()))
        for name, spec in family.nets.items()
        if isinstance(spec, Trainable)
    }
    for step in range(steps):
        at = Progress(step, step * ROWS, steps * ROWS, ROWS)
        draws = torch.Generator().manual_seed(step)
        which = torch.randint(len(centres), (ROWS,), generator=draws)
        point = centres[which] + STD * torch.randn(ROWS, 2, generator=draws)
        for phase in family.phases:
            if step % phase.every:
                continue
            rng = StreamRng(
                (Piece(0, 0, ROWS),), rows_per_stream=ROWS, seed=0, images=at.images, phase=phase.name
            )
            loss = phase.loss(view(nets, phase.trains), {"image": point[:, :, None, None]}, at, rng).loss_B
            optimizers[phase.trains].zero_grad()
            loss.mean().backward()
            optimizers[phase.trains].step()
        after = Progress(step + 1, (step + 1) * ROWS, steps * ROWS, ROWS)
        weight = 1 - family.nets["ema"].decay(after)
        with torch.no_grad():
            for mine, theirs in zip(nets["ema"].parameters(), nets["generator"].parameters(), strict=True):
                mine.lerp_(theirs, weight)
    request = SampleRequest(num=SAMPLES, options=config.sampling)
    with torch.no_grad():
        return family.sample(nets, request, after, SampleRng(1, range(SAMPLES))).flatten(1)


def covered(samples: Tensor, centres: Tensor) -> int:
    near = torch.cdist(samples, centres) < 3 * STD
    return int((near.sum(0) >= SAMPLES / len(centres) / 2).sum())


@pytest.mark.slow
def test_r3gan_covers_all_modes_and_an_even_spread_would_cover_none() -> None:
    """In 3,000 steps, half a minute of one idle core. The non-saturating game with R1 alone covers seven."""
    objective = {"loss": "relativistic", "penalties": R1R2}
    assert covered(trained(gan(objective), RING, steps=3_000), RING) == 8
    even = torch.rand(SAMPLES, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert covered(even, RING) == 0
