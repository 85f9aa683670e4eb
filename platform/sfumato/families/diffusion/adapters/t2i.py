"""T2I-Adapter (Mou et al. 2023, sec. 3.3): a small network sees an image once, and adds a feature to the end
of each level of a frozen U-Net's way down. It costs nothing at the other noise levels, unlike a ControlNet.

The network is diffusers' `T2IAdapter`. It starts as torch draws it, as its authors' does, so that the first
step differs a little from the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.family import Nets
from sfumato.families.diffusion.adapters import AdapterConfig, Look
from sfumato.families.diffusion.networks.unet_text import TextUNet
from sfumato.families.diffusion.steering import core
from sfumato.text.network import TextConditioned
from sfumato.text.states import States

NAME = "control"
OF_LATENTS = 8
"""How many pixels of the image a latent stands for, along a side."""


class T2IAdapterConfig(AdapterConfig):
    """A small network beside a U-Net."""

    names: ClassVar[tuple[str, ...]] = (NAME,)
    kind: Literal["t2i"] = Field("t2i", description="Selects a T2I-Adapter.")
    column: str = Field("control", description="The column of the data that holds the image of control.")
    channels: int = Field(3, ge=1, description="Channels of that image.")
    blocks: int = Field(2, ge=1, description="Residual blocks of each level.")
    shrink: int | None = Field(
        None,
        ge=1,
        description="How many times larger the image is than the base's input; null: 1 for pixels, 8 for "
        "latents.",
    )
    scale: float = Field(1.0, ge=0, description="Factor on what is added; 0 is the base.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The image, required."""
        column = data.columns.get(self.column)
        shape = (self.channels, data.height, data.width) if column is None else tuple(column.shape)
        return (Condition(NAME, self.column, "image", shape=shape, required=True),)

    def inputs(self, rows: Mapping[str, Any], look: Look) -> dict[str, Tensor]:
        """The images."""
        return {NAME: rows[self.column]}

    def trained(self) -> tuple[str, ...]:
        """The small network."""
        return ("*beside.*",)

    def added(self, network: nn.Module) -> nn.Module:
        """With the small network beside its U-Net."""
        conditioned = next(module for module in network.modules() if isinstance(module, TextConditioned))
        inner = core(network)
        assert isinstance(inner, TextUNet), "checked among the problems"
        conditioned.beside = Features(inner, self)
        return network

    def problems(self, network: nn.Module) -> list[str]:
        """Another network, or one whose levels end otherwise than Stable Diffusion's."""
        inner = core(network)
        if not isinstance(inner, TextUNet):
            return ["model.adapter: t2i needs a U-Net of texts: unet_text, Stable Diffusion 1, 2 or XL"]
        unet: Any = inner.unet
        kinds = list(unet.config.down_block_types)
        if any("CrossAttn" not in kind for kind in kinds[:-1]):
            found = f"this base has {', '.join(kinds)}"
            return [f"model.adapter: t2i needs a base whose levels but the last attend to texts; {found}"]
        return []

    def data_problems(self, data: DataSpec) -> list[str]:
        """A column that is missing, or is no image of so many channels."""
        column = data.columns.get(self.column)
        if column is None or column.kind != "image" or column.shape[0] != self.channels:
            lacks = f"the data has no image {self.column!r} of {self.channels} channels"
            return [f"model.adapter.column: {lacks}, only {', '.join(data.columns)}; name it in data.columns"]
        return []

    def files(self, nets: Nets, base: str) -> T2IAdapterFiles:
        """As a folder of diffusers."""
        conditioned = next(module for module in nets["ema"].modules() if isinstance(module, TextConditioned))
        return T2IAdapterFiles(conditioned.beside)

    @classmethod
    def tiny(cls) -> Self:
        """Of the images themselves."""
        return cls(column="image", channels=1, blocks=1)


@dataclass(frozen=True, slots=True)
class T2IAdapterFiles:
    """A `T2IAdapter`, which `T2IAdapter.from_pretrained` loads."""

    features: Any

    def write(self, folder: Path, name: str) -> None:
        """Into a new folder."""
        self.features.adapter.save_pretrained(folder)


class Features(nn.Module):
    """What a U-Net gets beside its states; called with (x, t, states, inputs)."""

    def __init__(self, network: TextUNet, config: T2IAdapterConfig) -> None:
        super().__init__()
        from diffusers import T2IAdapter

        unet: Any = network.unet
        shrink = config.shrink
        if shrink is None:
            shrink = 1 if unet.config.in_channels in (1, 3) else OF_LATENTS
        self._scale = config.scale
        self.adapter: Any = T2IAdapter(
            in_channels=config.channels,
            channels=list(unet.config.block_out_channels),
            num_res_blocks=config.blocks,
            downscale_factor=shrink,
            adapter_type="full_adapter",
        )

    def forward(
        self, x_BCHW: Tensor, t: Tensor, text: States, inputs: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """A feature for each level. The image is given in [-1, 1]; diffusers' has it in [0, 1]."""
        seen = self.adapter((inputs[NAME] / 2 + 0.5).to(x_BCHW.dtype))
        return {"down_intrablock_additional_residuals": [self._scale * each for each in seen]}


COMPONENT = T2IAdapterConfig
