"""ControlNet (Zhang et al. 2023, sec. 3.2): a trained copy of a U-Net's way down sees an image, and adds to
the frozen U-Net through convolutions that start at zero, so that the first step draws what the base draws.

The network is diffusers' `ControlNetModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.family import Nets
from sfumato.families.diffusion.adapting.control import NAME, ControlConfig, LibraryFiles, shown, shrink_of
from sfumato.families.diffusion.adapting.steering import conditioned, core
from sfumato.families.diffusion.networks.unet_text import TextUNet, sizes_added
from sfumato.text.states import States

FIRST_WIDTHS = (16, 32, 96, 256)
"""Channels of what brings an image to the size of latents, one for each halving and one more (sec. 3.3)."""


class ControlNetConfig(ControlConfig):
    """A copy of the way down that sees an image."""

    kind: Literal["controlnet"] = Field("controlnet", description="Selects control by an image.")
    halvings: int | None = Field(
        None,
        ge=0,
        le=3,
        description="How often the image's side is halved to be that of the base's input; null: 0 for "
        "pixels, for latents what the first stage does (3 in Stable Diffusion).",
    )

    def trained(self) -> tuple[str, ...]:
        """The copy, and the convolutions that start at zero."""
        return ("*.branch.*",)

    @property
    def sized(self) -> bool:
        """By `halvings`."""
        return self.halvings is not None

    def beside(self, network: TextUNet, shrink: int) -> Beside:
        """The branch."""
        halvings = shrink.bit_length() - 1 if self.halvings is None else self.halvings
        return Beside(network, self, halvings)

    @property
    def begins(self) -> bool:
        """The copy is one of the base's loaded weights."""
        return True

    def begin(self, network: nn.Module) -> None:
        """Copy the base's way down, in place."""
        holder = conditioned(network)
        unet, branch = holder.network.unet, holder.beside.branch
        names = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")
        for name in names:
            if getattr(branch, name, None) is not None:
                getattr(branch, name).load_state_dict(getattr(unet, name).state_dict())

    def problems(self, network: nn.Module) -> list[str]:
        """Another network than a U-Net of texts, or one that is told which states are padding."""
        if found := super().problems(network):
            return found
        inner = core(network)
        assert isinstance(inner, TextUNet), "no problem"
        if inner.masked:
            return ["model.network.mask: a ControlNet attends to padding; start from a model with mask=false"]
        shrink = shrink_of(network)
        if self.halvings is None and shrink not in (1, 2, 4, 8):
            return [
                f"model.adapter: controlnet halves its image up to 3 times; latents are {shrink}x smaller"
            ]
        return []

    def files(self, nets: Nets, base: str) -> LibraryFiles:
        """The branch as a folder of diffusers."""
        return LibraryFiles(conditioned(nets["ema"]).beside.branch)

    @classmethod
    def tiny(cls) -> ControlNetConfig:
        """Of the images themselves."""
        return cls(column="image", channels=1)


class Beside(nn.Module):
    """What a network of texts gets beside its states; called with (x, t, states, inputs)."""

    def __init__(self, network: TextUNet, config: ControlNetConfig, halvings: int) -> None:
        super().__init__()
        from diffusers import ControlNetModel

        self._size, self._scale = network.size, config.scale
        unet: Any = network.unet
        self.branch: Any = ControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=FIRST_WIDTHS[: halvings + 1],
            conditioning_channels=config.channels,
            load_weights_from_unet=False,
        )

    def forward(
        self, x_BCHW: Tensor, t: Tensor, text: States, inputs: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """What the U-Net adds on its way up."""
        down, mid = self.branch(
            x_BCHW,
            t,
            encoder_hidden_states=text.states,
            controlnet_cond=shown(inputs[NAME], x_BCHW),
            conditioning_scale=self._scale,
            added_cond_kwargs=None if self._size is None else sizes_added(text, self._size),
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


COMPONENT = ControlNetConfig
