"""The U-Net: diffusers' `UNet2DModel`, so that a trained network is one that diffusers loads."""

from __future__ import annotations

from diffusers import UNet2DModel
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.config import NetworkConfig


def build_unet(config: NetworkConfig, data: DataSpec, *, conditional: bool) -> UNet2DModel:
    """A U-Net with weights drawn from torch's global generator.

    A conditional network has one class embedding more than the data has classes: the last one, index
    `data.num_classes`, stands for no class (Ho & Salimans 2022).
    """
    levels = range(len(config.channels))
    down = tuple("AttnDownBlock2D" if level in config.attention else "DownBlock2D" for level in levels)
    up = tuple("AttnUpBlock2D" if level in config.attention else "UpBlock2D" for level in reversed(levels))
    return UNet2DModel(
        sample_size=(data.height, data.width),
        in_channels=data.channels,
        out_channels=data.channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=down,
        up_block_types=up,
        add_attention=config.mid_attention,
        attention_head_dim=config.head_dim,
        norm_num_groups=config.norm_groups,
        resnet_time_scale_shift="default" if config.time_conditioning == "add" else "scale_shift",
        dropout=config.dropout,
        num_class_embeds=data.num_classes + 1 if conditional else None,
    )


def predict(network: nn.Module, x_BCHW: Tensor, t_B: Tensor, label_B: Tensor | None) -> Tensor:
    """The network's output [B, C, H, W] in float32, whatever autocast computes in.

    The tuple form of the output is used because wrappers such as DDP look for tensors in tuples.
    """
    output: Tensor = network(x_BCHW, t_B, label_B, return_dict=False)[0]
    return output.float()
