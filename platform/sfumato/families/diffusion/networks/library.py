"""A U-Net of diffusers as its folder describes it: that of a DDPM pipeline, with classes or without.

`model.pretrained` fills it in; the networks of texts are in `library_text.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field
from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.core.pretrained import LibraryModel
from sfumato.families.diffusion.networks import NetworkConfig
from sfumato.families.diffusion.networks.unet import halving_problems
from sfumato.layers import library_networks

CLASS = "UNet2DModel"


class LibraryUNetConfig(NetworkConfig):
    """A `UNet2DModel` of diffusers with the configuration that its folder holds."""

    of_pretrained: ClassVar[bool] = True
    several_sizes: ClassVar[bool] = True
    for_diffusers: ClassVar[bool] = True
    kind: Literal["library"] = Field("library", description="Selects a U-Net that model.pretrained brings.")
    model: LibraryModel = Field(description="The network; recorded when a run starts.")

    def build(self, data: DataSpec, *, conditional: bool, outputs: int = 1) -> nn.Module:
        """The network, with weights drawn from torch's global generator."""
        return library_networks.build(self.model)

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Images of other channels, or of sides that its levels cannot halve; other classes than its own."""
        config = self.model.config
        if self.model.name != CLASS:
            return [f"model.network.model: is a {self.model.name}; this kind of network is a {CLASS}"]
        channels = config.get("in_channels", 3)
        found = []
        if channels != data.channels:
            found.append(
                f"model.pretrained: its network takes {channels} channels, the {what} has {data.channels}; "
                "pack the data with as many"
            )
        classes = config.get("num_class_embeds")
        if classes is not None and classes != data.num_classes + 1:
            found.append(
                f"model.pretrained: its network knows {classes - 1} classes and none, the data has "
                f"{data.num_classes}; use data of its classes"
            )
        return found + halving_problems(len(config.get("block_out_channels", (1,))), data, what)

    def couples_rows(self) -> bool:
        """Dropout draws one mask for a whole micro-batch."""
        return bool(self.model.config.get("dropout"))

    @classmethod
    def tiny(cls) -> Self:
        """Two levels of 8 channels, of images of one channel and eight classes."""
        config = {
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "layers_per_block": 1,
            "block_out_channels": [8, 8],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "norm_num_groups": 4,
            "attention_head_dim": 4,
        }
        return cls(model=LibraryModel(library="diffusers", name=CLASS, config=config))


COMPONENT = LibraryUNetConfig
