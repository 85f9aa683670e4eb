"""An adapter: low-rank additions to the linear layers of a frozen bfloat16 U-Net from a folder of diffusers.

LoRA (Hu et al. 2021, sec. 4.1): a layer's output W x becomes W x + B A x, of which A and B alone are trained,
averaged, checkpointed and exported; a model folder names the base by its place and digest. The model restores
noisy images in one step.

    model: {family: "adapter:AdapterConfig", base: {folder: /models/sd, subfolder: unet}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, FamilyConfig, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.pretrained import Pretrained
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.schedules import LearningRate
from sfumato.layers import library_networks

PATTERNS = ("*.lora_*",)


class AdapterConfig(FamilyConfig):
    """A U-Net of diffusers that takes images of this kind, and additions to it."""

    family: Literal["adapter:AdapterConfig"] = Field("adapter:AdapterConfig", description="This family.")
    base: Pretrained = Field(description="The U-Net: a folder of diffusers.")
    rank: int = Field(2, ge=1, description="Of the additions.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(lr=LearningRate(peak=1e-3)), description="How they are trained."
    )
    sampling: Config = Field(Config(), description="Nothing to choose.")

    def build(self, data: DataSpec) -> Adapter:
        return Adapter(self, data)

    @classmethod
    def tiny(cls) -> AdapterConfig:
        return cls(base=Pretrained(folder="unet"))


class Adapter:
    """Implements `core.family.Family`."""

    samplers: Sequence[str] = ("ema",)

    def __init__(self, config: AdapterConfig, data: DataSpec) -> None:
        self._shape = data.shape
        base = library_networks.opened(config.base)
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(
                build=lambda: adapted(base.build, config.rank),
                optimizer=config.optimizer,
                weights=base.weights,
                adapter=PATTERNS,
            ),
            "ema": EmaOf(source="network", decay=lambda progress: 0.5),
        }
        self.phases: Sequence[Phase] = (Phase(name="restore", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        return {**batch, "noisy": batch["image"] + 0.5 * rng.normal(*self._shape)}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        return restored(nets["ema"], rng.normal(*self._shape)).clamp(-1, 1)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        found = restored(nets["network"], batch["noisy"])
        return LossOut((found - batch["image"]).square().flatten(1).mean(dim=1))


def restored(unet: nn.Module, noisy_BCHW: Tensor) -> Tensor:
    """What the U-Net makes of float32 images, float32."""
    time_B = torch.zeros(len(noisy_BCHW), dtype=torch.long, device=noisy_BCHW.device)
    found: Tensor = unet(noisy_BCHW.to(torch.bfloat16), time_B).sample
    return found.float()


def adapted(build: Callable[[], nn.Module], rank: int) -> nn.Module:
    """The network in bfloat16, with a float32 addition to each of its linear layers."""
    network = build().to(torch.bfloat16)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LowRank(child, rank))
    return network


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
