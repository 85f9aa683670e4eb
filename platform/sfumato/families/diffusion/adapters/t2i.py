"""T2I-Adapter (Mou et al. 2023, sec. 3.3): a small network sees an image once, and adds a feature to the end
of each level of a frozen U-Net's way down. It costs nothing at the other noise levels, unlike a ControlNet.

The network is diffusers' `T2IAdapter`. It starts as torch draws it, as its authors' does, so that the first
step differs a little from the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.family import Nets
from sfumato.families.diffusion.adapting.control import NAME, ControlConfig, LibraryFiles, shown
from sfumato.families.diffusion.adapting.steering import conditioned, core
from sfumato.families.diffusion.networks.unet_text import TextUNet
from sfumato.text.states import States


class T2IAdapterConfig(ControlConfig):
    """A small network beside a U-Net."""

    kind: Literal["t2i"] = Field("t2i", description="Selects a T2I-Adapter.")
    blocks: int = Field(2, ge=1, description="Residual blocks of each level.")
    shrink: int | None = Field(
        None,
        ge=1,
        description="How many times larger the image is than the base's input; null: 1 for pixels, for "
        "latents as the first stage has it (8 in Stable Diffusion).",
    )

    def trained(self) -> tuple[str, ...]:
        """The small network."""
        return ("*beside.*",)

    @property
    def sized(self) -> bool:
        """By `shrink`."""
        return self.shrink is not None

    def beside(self, network: TextUNet, shrink: int) -> Features:
        """The small network."""
        return Features(network, self, self.shrink or shrink)

    def problems(self, network: nn.Module) -> list[str]:
        """Another network, or one whose levels end otherwise than Stable Diffusion's."""
        if found := super().problems(network):
            return found
        inner: Any = core(network)
        kinds = list(inner.unet.config.down_block_types)
        if any("CrossAttn" not in kind for kind in kinds[:-1]):
            has = f"this base has {', '.join(kinds)}"
            return [f"model.adapter: t2i needs a base whose levels but the last attend to texts; {has}"]
        return []

    def files(self, nets: Nets, base: str) -> LibraryFiles:
        """As a folder of diffusers' `T2IAdapter`."""
        return LibraryFiles(conditioned(nets["ema"]).beside.adapter)

    @classmethod
    def tiny(cls) -> Self:
        """Of the images themselves."""
        return cls(column="image", channels=1, blocks=1)


class Features(nn.Module):
    """What a U-Net gets beside its states; called with (x, t, states, inputs)."""

    def __init__(self, network: TextUNet, config: T2IAdapterConfig, shrink: int) -> None:
        super().__init__()
        from diffusers import T2IAdapter

        unet: Any = network.unet
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
        """A feature for each level."""
        seen = self.adapter(shown(inputs[NAME], x_BCHW))
        return {"down_intrablock_additional_residuals": [self._scale * each for each in seen]}


COMPONENT = T2IAdapterConfig
