"""The networks: each takes (x_BCHW, t, label_B or None, return_dict=False) and returns a tuple of one tensor.

The signature is that of diffusers' `UNet2DModel`, so that every objective trains every network.
"""

from __future__ import annotations

from torch import Tensor, nn


def predict(network: nn.Module, x_BCHW: Tensor, t_B: Tensor, label_B: Tensor | None) -> Tensor:
    """The network's output [B, C, H, W] in float32, whatever autocast computes in.

    The tuple form of the output is used because wrappers such as DDP look for tensors in tuples.
    """
    output: Tensor = network(x_BCHW, t_B, label_B, return_dict=False)[0]
    return output.float()
