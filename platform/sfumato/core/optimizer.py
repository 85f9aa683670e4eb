"""Which optimizer trains a network, with its learning rate as a function of images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from sfumato.core.config import Config
from sfumato.core.schedules import LearningRate

_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019) or SGD."""

    name: Literal["adam", "adamw", "sgd"] = Field("adamw", description="Update rule.")
    lr: LearningRate = Field(LearningRate(), description="Learning rate against images seen.")
    betas: tuple[_Decay, _Decay] = Field(
        (0.9, 0.99), description="Decay of the two moments (SGD: the first is the momentum)."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled for adamw, L2 for the others.")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer; the loop sets the learning rate of every step."""
        rate = self.lr.peak
        if self.name == "sgd":
            return torch.optim.SGD(
                parameters, lr=rate, momentum=self.betas[0], weight_decay=self.weight_decay, fused=True
            )
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        # The fused kernels exist on CPU and CUDA; on CPU they save most of the time of a small step.
        return kind(
            parameters,
            lr=rate,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )
