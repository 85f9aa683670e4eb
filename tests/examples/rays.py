"""Rays with cameras: a radiance field that is learnt from views, and renders the view of any camera.

After NeRF (Mildenhall et al. 2020): a network says colour and density at a point, and a pixel is the sum
along its ray (eq. 3). The camera of a sample is the column `camera` [3, 4], from camera to world: the columns
are the directions right, down and forward, and the position. Training takes some rays of every view; sampling
takes the camera as a condition. The column is packed from JSON, by `columns: {camera: {kind: camera, field:
camera_to_world}}`.

    data:  {path: ..., columns: [camera]}
    model: {family: "rays:RaysConfig"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, FamilyConfig, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.schedules import LearningRate

CAMERA = (3, 4)


class RaysConfig(FamilyConfig):
    """One scene. Pixels are square, and the image is as wide as it is far away."""

    family: Literal["rays:RaysConfig"] = Field("rays:RaysConfig", description="This family.")
    near: float = Field(1.0, gt=0, description="Where rays begin, in units of the cameras' positions.")
    far: float = Field(3.0, gt=0, description="Where they end.")
    points: int = Field(12, ge=1, description="Points on a ray.")
    rays: int = Field(16, ge=1, description="Rays of a view that a step of training looks at.")
    width: int = Field(32, ge=1, description="Width of the network.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=0.02)), description="How the field is trained."
    )
    sampling: Config = Field(Config(), description="Nothing to choose.")

    def build(self, data: DataSpec) -> Rays:
        return Rays(self, data)

    @classmethod
    def tiny(cls) -> RaysConfig:
        return cls()

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        return (Condition("camera", "camera", "camera", CAMERA, required=True),)


class Rays:
    """Implements `core.family.Family`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: RaysConfig, data: DataSpec) -> None:
        self._config, self._data = config, data
        self.nets: Mapping[str, NetSpec] = {
            "field": Trainable(
                build=lambda: RadianceField(config.width, data.channels), optimizer=config.optimizer
            ),
            "ema": EmaOf(source="field", decay=lambda progress: 0.5),
        }
        self.phases: Sequence[Phase] = (Phase(name="render", trains="field", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """Some rays of every view, their pixels, and points at random depths of equal parts of the ray."""
        origins_B3, directions_BP3 = self._rays_of(batch["camera"])
        chosen_BR = rng.integers(self._data.height * self._data.width, self._config.rays)
        colours_BPC = batch["image"].flatten(2).transpose(1, 2)
        return {
            "origins": origins_B3,
            "directions": _rows(directions_BP3, chosen_BR),
            "colours": _rows(colours_BPC, chosen_BR),
            "places": rng.uniform(self._config.rays, self._config.points),
        }

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        camera = request.tensor("camera")
        assert camera is not None, "it is required"
        origins_B3, directions_BP3 = self._rays_of(camera.to(next(nets["ema"].parameters()).device))
        middle = torch.full((*directions_BP3.shape[:2], self._config.points), 0.5, device=origins_B3.device)
        colours_BPC = nets["ema"](origins_B3, directions_BP3, self._depths(middle))
        return colours_BPC.transpose(1, 2).reshape(-1, *self._data.shape).clamp(-1, 1)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        found = nets["field"](batch["origins"], batch["directions"], self._depths(batch["places"]))
        return LossOut((found - batch["colours"]).square().flatten(1).mean(dim=1))

    def _rays_of(self, camera_B34: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, 3], and directions [B, height * width, 3] through the middles of the pixels."""
        height, width = self._data.height, self._data.width
        y = (torch.arange(height, device=camera_B34.device) + 0.5) / width - height / width / 2
        x = (torch.arange(width, device=camera_B34.device) + 0.5) / width - 0.5
        down, right = torch.meshgrid(y, x, indexing="ij")
        own_P3 = torch.stack([right, down, torch.ones_like(right)], dim=-1).reshape(-1, 3)
        return camera_B34[:, :, 3], torch.einsum("bij,pj->bpi", camera_B34[:, :, :3], own_P3)

    def _depths(self, places_BRN: Tensor) -> Tensor:
        """[B, R, N], rising: a ray is cut into N parts, and each has its point at this place within it."""
        config = self._config
        parts = torch.arange(config.points, device=places_BRN.device)
        return config.near + (config.far - config.near) * (parts + places_BRN) / config.points


class RadianceField(nn.Module):
    """Colours of rays in [-1, 1], black where they meet nothing."""

    OCTAVES = 3

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3 + 6 * self.OCTAVES, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, channels + 1),
        )

    def forward(self, origins_B3: Tensor, directions_BR3: Tensor, depths_BRN: Tensor) -> Tensor:
        points = origins_B3[:, None, None] + directions_BR3[:, :, None] * depths_BRN[..., None]
        waves = [f(2.0**octave * points) for octave in range(self.OCTAVES) for f in (torch.sin, torch.cos)]
        found = self.net(torch.cat([points, *waves], dim=-1))
        colour, density = torch.sigmoid(found[..., :-1]), F.softplus(found[..., -1])
        steps = torch.diff(depths_BRN, dim=-1, append=depths_BRN[..., -1:] + 0.1)
        clear = torch.exp(-density * steps)
        reached = torch.cumprod(torch.cat([torch.ones_like(clear[..., :1]), clear[..., :-1]], dim=-1), dim=-1)
        seen = (reached * (1 - clear))[..., None]
        return 2 * (seen * colour).sum(dim=-2) - 1


def _rows(values_BPC: Tensor, chosen_BR: Tensor) -> Tensor:
    """The chosen rows of every sample, [B, R, C]."""
    return values_BPC.gather(1, chosen_BR[..., None].expand(-1, -1, values_BPC.shape[-1]))
