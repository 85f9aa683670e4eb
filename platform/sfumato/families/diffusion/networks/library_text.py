"""A network of texts of diffusers as its folder describes it: of Stable Diffusion 1 to 3, SDXL, PixArt.

`model.pretrained` fills it in. What calls the network, and the pipeline that it is exported as, are those of
`unet_text`, `pixart` and `mmdit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.core.pretrained import LibraryModel
from sfumato.errors import ConfigError
from sfumato.families.diffusion.layers.patches import tiling_problems
from sfumato.families.diffusion.networks import PipelineParts, TextNetworkConfig
from sfumato.families.diffusion.networks.mmdit import MMDiT, MMDiTConfig
from sfumato.families.diffusion.networks.pixart import PixArt, PixArtConfig
from sfumato.families.diffusion.networks.unet import halving_problems
from sfumato.families.diffusion.networks.unet_text import TextUNet, TextUNetConfig
from sfumato.layers import library_networks
from sfumato.text.states import TextShape

_WIDTHS = {
    "UNet2DConditionModel": "cross_attention_dim",
    "PixArtTransformer2DModel": "caption_channels",
    "SD3Transformer2DModel": "joint_attention_dim",
}
"""The classes known here, each with its name for the width of a token's state."""


class LibraryTextConfig(TextNetworkConfig):
    """A network of diffusers that attends to texts, with the configuration that its folder holds."""

    of_pretrained: ClassVar[bool] = True
    several_sizes: ClassVar[bool] = True
    kind: Literal["library_text"] = Field(
        "library_text", description="Selects a network of texts that model.pretrained brings."
    )
    model: LibraryModel = Field(description="The network; recorded when a run starts.")
    pooled_with_size: tuple[int, int] | None = Field(
        None, description="Height and width that SDXL is told of every image."
    )

    def build_for_text(self, data: DataSpec, text: TextShape, *, outputs: int = 1) -> nn.Module:
        """The network, with weights drawn from torch's global generator."""
        network = library_networks.build(self.model)
        if self._is_unet:
            return TextUNet(network, size=self.pooled_with_size)
        kinds: dict[str, Callable[[nn.Module], nn.Module]] = {
            "PixArtTransformer2DModel": PixArt,
            "SD3Transformer2DModel": MMDiT,
        }
        return kinds[self.model.name](network)

    @property
    def inner(self) -> str:
        """By its class."""
        return "unet" if self._is_unet else "transformer"

    @property
    def base_kind(self) -> str:
        """By its class and its width of texts."""
        if not self._is_unet:
            return self.model.name
        if self.pooled_with_size is not None:
            return "xl"
        return "sd2" if self.model.config.get("use_linear_projection") else "sd1"

    def takes_several_sizes(self) -> bool:
        """A U-Net does; a transformer has positions for its own size."""
        return self._is_unet

    def couples_rows(self) -> bool:
        """Dropout draws one mask for a whole micro-batch."""
        return bool(self.model.config.get("dropout"))

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Another class, other channels, or sides that it does not take."""
        config = self.model.config
        if self.model.name not in _WIDTHS:
            return [f"model.network.model: {self.model.name} is none of {', '.join(_WIDTHS)}"]
        if config.get("use_additional_conditions"):
            return ["model.pretrained: this PixArt is told resolutions, which is not supported; use the 512"]
        channels = config.get("in_channels", 4)
        if channels != data.channels:
            return [
                f"model.pretrained: its network takes {channels} channels, the {what} has {data.channels}"
            ]
        if self._is_unet:
            return halving_problems(len(config.get("block_out_channels", (1, 1, 1, 1))), data, what)
        return tiling_problems(int(config.get("patch_size", 2)), data, what) or self._place_problems(
            data, what
        )

    def text_problems(self, text: TextShape) -> list[str]:
        """States of another width than it attends to."""
        width = self.model.config.get(_WIDTHS.get(self.model.name, ""))
        if width is None or width == text.width:
            return []
        return [
            f"model.text.encoders: give states of width {text.width}; the pretrained network takes {width}"
        ]

    def pipeline(self, parts: PipelineParts) -> Any:
        """The pipeline that the network came from, or its kin."""
        if self._is_unet:
            return TextUNetConfig(pooled_with_size=self.pooled_with_size).pipeline(parts)
        kinds: dict[str, type[TextNetworkConfig]] = {
            "PixArtTransformer2DModel": PixArtConfig,
            "SD3Transformer2DModel": MMDiTConfig,
        }
        if self.model.name not in kinds:
            raise ConfigError(f"diffusers has no pipeline for a {self.model.name}; use --format safetensors")
        return kinds[self.model.name]().pipeline(parts)

    @property
    def _is_unet(self) -> bool:
        return self.model.name == "UNet2DConditionModel"

    def _place_problems(self, data: DataSpec, what: str) -> list[str]:
        """A PixArt interpolates its positions; an MMDiT cuts them from those of the largest image."""
        most = self.model.config.get("pos_embed_max_size")
        patches = max(data.height, data.width) // int(self.model.config.get("patch_size", 2))
        if most is None or patches <= most:
            return []
        return [f"model.pretrained: has positions for {most} patches a side, the {what} has {patches}"]

    @classmethod
    def tiny(cls) -> Self:
        """A U-Net of two levels, for the smallest text encoder."""
        config = {
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "layers_per_block": 1,
            "block_out_channels": [8, 8],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            "cross_attention_dim": 8,
        }
        model = LibraryModel(library="diffusers", name="UNet2DConditionModel", config=config)
        return cls(model=model)


COMPONENT = LibraryTextConfig
