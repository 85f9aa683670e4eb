"""The networks: each takes (x_BCHW, t, label_B or None, return_dict=False) and returns a tuple of one tensor.

The first C channels of the output are the prediction; an objective may ask for C more. The signature is that
of diffusers' `UNet2DModel`, so that every objective trains every network. A file here is a network: its
configuration, a `NetworkConfig`, and what that builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components


class NetworkConfig(Component, ABC):
    """Kind and size of a network, which it builds."""

    several_sizes: ClassVar[bool] = False
    """Whether one network takes images of several sizes."""
    for_diffusers: ClassVar[bool] = False
    """Whether diffusers' pipelines support the network."""

    @abstractmethod
    def build(self, data: DataSpec, *, conditional: bool, outputs: int = 1) -> nn.Module:
        """The network, with weights drawn from torch's global generator.

        It returns `outputs` times the channels of the data. A conditional one has one class embedding more
        than the data has classes: the last, index `data.num_classes`, stands for no class (Ho & Salimans
        2022).
        """

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Why it cannot be built for a `what` (image, latent) of this shape, one line each."""
        return []

    def couples_rows(self) -> bool:
        """Whether a row's loss depends on the other rows, as with dropout, which draws for all at once."""
        return False


NETWORKS: Components[NetworkConfig] = Components(
    "sfumato.families.diffusion.networks", NetworkConfig, default="unet"
)


def predict(network: nn.Module, x_BCHW: Tensor, t_B: Tensor, label_B: Tensor | None) -> Tensor:
    """The network's output [B, outputs * C, H, W] in float32, whatever autocast computes in.

    The tuple form of the output is used because wrappers such as DDP look for tensors in tuples.
    """
    output: Tensor = network(x_BCHW, t_B, label_B, return_dict=False)[0]
    return output.float()
