"""A family outside the package that builds on pretrained networks: an adapter, or a student of a teacher.

It restores noisy images in one step. As `adapter` it trains low-rank additions to the linear layers of a
frozen bfloat16 U-Net from a folder of diffusers (Hu et al. 2021); as `student` it trains a small network to
do what a frozen teacher does, a U-Net from such a folder or the network of a trained diffusion run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.config import Config
from sfumato.core.family import (
    EmaOf,
    FamilyConfig,
    Frozen,
    LossOut,
    Nets,
    NetSpec,
    Phase,
    SampleRequest,
    Trainable,
)
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.pretrained import OpenNetwork, Pretrained
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families import config_class
from sfumato.layers import library_networks

PATTERNS = ("*.lora_*",)


class LowRank(nn.Module):
    """A linear layer with a low-rank addition; the layer's own tensors keep their names."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features)
        self.lora_up = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.register_buffer("lora_scale", torch.ones(()))
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        own = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        added = F.linear(F.linear(self.drop(x.float()), self.lora_down), self.lora_up)
        return own + (self.lora_scale * added).to(own.dtype)


def adapted(build: Callable[[], nn.Module]) -> nn.Module:
    """The network in bfloat16, with a float32 addition to each of its linear layers."""
    network = build().to(torch.bfloat16)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LowRank(child, 2))
    return network


class Student(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class NoOptions(Config):
    pass


class OnPretrained(FamilyConfig):
    family: str = "on_pretrained:OnPretrained"
    kind: Literal["adapter", "student"] = Field("adapter", description="What is trained.")
    nested: dict[str, tuple[Pretrained, ...]] = Field({}, description="The pretrained network, under `it`.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="Of what is trained.")
    sampling: NoOptions = NoOptions()

    @property
    def pretrained(self) -> Pretrained:
        return self.nested["it"][0]

    def open(self) -> OpenNetwork:
        if self.pretrained.source[0] == "run":
            return self.pretrained.open(config_class)
        return library_networks.opened(self.pretrained)

    def build(self, data: DataSpec) -> OnPretrainedFamily:
        return OnPretrainedFamily(self, data)

    @classmethod
    def tiny(cls) -> Self:
        return cls()


class OnPretrainedFamily:
    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: OnPretrained, data: DataSpec) -> None:
        self._config, self._data = config, data
        opened = config.open()
        ema = EmaOf(source="network", decay=lambda progress: 0.5)
        self.nets: Mapping[str, NetSpec]
        if config.kind == "adapter":
            network = Trainable(
                build=lambda: adapted(opened.build),
                optimizer=config.optimizer,
                weights=opened.weights,
                adapter=PATTERNS,
            )
            self.nets = {"network": network, "ema": ema}
        else:
            network = Trainable(build=lambda: Student(data.channels), optimizer=config.optimizer)
            teacher = Frozen(build=opened.build, weights=opened.weights, dtype=torch.bfloat16, shard=True)
            self.nets = {"network": network, "teacher": teacher, "ema": ema}
        self.phases = (Phase(name="restore", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        noisy = batch["image"] + 0.5 * rng.normal(*self._data.shape)
        target = batch["image"] if self._config.kind == "adapter" else _restored(nets["teacher"], noisy)
        return {**batch, "noisy": noisy, "target": target}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        noise = rng.normal(*self._data.shape)
        network = nets["ema"]
        return (network(noise) if self._config.kind == "student" else _restored(network, noise)).clamp(-1, 1)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        network = nets["network"]
        student = self._config.kind == "student"
        found = network(batch["noisy"]) if student else _restored(network, batch["noisy"])
        return LossOut((found - batch["target"]).square().mean((1, 2, 3)))


def _restored(unet: Any, x: Tensor) -> Tensor:
    """What a U-Net of diffusers makes of images, [B, C, H, W] float32."""
    time = torch.zeros(len(x), dtype=torch.long, device=x.device)
    config = getattr(unet, "module", unet).config  # the trained network may be wrapped
    labels = {"class_labels": time} if config.num_class_embeds else {}
    found: Tensor = unet(x.to(torch.bfloat16), time, **labels).sample
    return found.float()
