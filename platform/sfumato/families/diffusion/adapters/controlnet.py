"""ControlNet (Zhang et al. 2023, sec. 3.2): a trained copy of a U-Net's way down sees an image, and adds to
the frozen U-Net through convolutions that start at zero, so that the first step draws what the base draws.

The network is diffusers' `ControlNetModel`. The image is a column of the data: edges, masks, depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.family import Nets
from sfumato.families.diffusion.adapters import AdapterConfig, Look
from sfumato.families.diffusion.networks.unet_text import TextUNet, sizes_added
from sfumato.text.network import TextConditioned
from sfumato.text.states import States

NAME = "control"
FIRST_WIDTHS = (16, 32, 96, 256)
"""Channels of what brings an image to the size of latents, one for each halving and one more (sec. 3.3)."""
OF_LATENTS = 3


class ControlNetConfig(AdapterConfig):
    """A copy of the way down that sees an image."""

    names: ClassVar[tuple[str, ...]] = (NAME,)
    kind: Literal["controlnet"] = Field("controlnet", description="Selects control by an image.")
    column: str = Field("control", description="The column of the data that holds the image of control.")
    channels: int = Field(3, ge=1, description="Channels of that image.")
    halvings: int | None = Field(
        None,
        ge=0,
        le=3,
        description="How often the image's side is halved to be that of the base's input; null: 0 for "
        "pixels, 3 for latents.",
    )
    scale: float = Field(1.0, ge=0, description="Factor on what is added; 0 is the base.")

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The image, required."""
        column = data.columns.get(self.column)
        shape = (self.channels, data.height, data.width) if column is None else tuple(column.shape)
        return (Condition(NAME, self.column, "image", shape=shape, required=True),)

    def inputs(self, rows: Mapping[str, Any], look: Look) -> dict[str, Tensor]:
        """The images, by the name that the branch looks for."""
        return {NAME: rows[self.column]}

    def trained(self) -> tuple[str, ...]:
        """The copy, and the convolutions that start at zero."""
        return ("*.branch.*",)

    def added(self, network: nn.Module) -> nn.Module:
        """With the branch beside its U-Net."""
        conditioned = _conditioned(network)
        assert isinstance(conditioned.network, TextUNet), "checked among the problems"
        conditioned.beside = Beside(conditioned.network, self)
        return network

    @property
    def begins(self) -> bool:
        """The copy is one of the base's loaded weights."""
        return True

    def begin(self, network: nn.Module) -> None:
        """Copy the base's way down, in place."""
        conditioned = _conditioned(network)
        unet: Any = conditioned.network.unet
        branch: Any = conditioned.beside.branch
        names = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")
        for name in names:
            if getattr(branch, name, None) is not None:
                getattr(branch, name).load_state_dict(getattr(unet, name).state_dict())

    def problems(self, network: nn.Module) -> list[str]:
        """Another network than a U-Net of texts."""
        found = [module for module in network.modules() if isinstance(module, TextUNet)]
        if not found:
            return [
                "model.adapter: controlnet needs a U-Net of texts: unet_text, Stable Diffusion 1, 2 or XL"
            ]
        if found[0].masked:
            return ["model.network.mask: a ControlNet attends to padding; start from a model with mask=false"]
        return []

    def data_problems(self, data: DataSpec) -> list[str]:
        """A column that is missing, or is no image of so many channels."""
        column = data.columns.get(self.column)
        if column is None:
            has = ", ".join(data.columns)
            return [
                f"model.adapter.column: the data has no {self.column!r}, only {has}; name it in data.columns"
            ]
        if column.kind != "image" or column.shape[0] != self.channels:
            what = "x".join(map(str, column.shape))
            found = f"{self.column!r} is of kind {column.kind}, {what}"
            return [f"model.adapter.channels: {found}; name a column of images, and set channels to its own"]
        return []

    def files(self, nets: Nets, base: str) -> ControlNetFiles:
        """The branch as a folder of diffusers."""
        return ControlNetFiles(_conditioned(nets["ema"]).beside.branch)

    @classmethod
    def tiny(cls) -> ControlNetConfig:
        """Of the images themselves."""
        return cls(column="image", channels=1)


@dataclass(frozen=True, slots=True)
class ControlNetFiles:
    """A `ControlNetModel`, which `ControlNetModel.from_pretrained` loads."""

    branch: Any

    def write(self, folder: Path, name: str) -> None:
        """Into a new folder."""
        self.branch.save_pretrained(folder)


class Beside(nn.Module):
    """What a network of texts gets beside its states; called with (x, t, states, inputs)."""

    def __init__(self, network: TextUNet, config: ControlNetConfig) -> None:
        super().__init__()
        from diffusers import ControlNetModel

        self._size, self._scale = network.size, config.scale
        unet: Any = network.unet
        halvings = config.halvings
        if halvings is None:
            halvings = 0 if unet.config.in_channels in (1, 3) else OF_LATENTS
        self.branch: Any = ControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=FIRST_WIDTHS[: halvings + 1],
            conditioning_channels=config.channels,
            load_weights_from_unet=False,
        )

    def forward(
        self, x_BCHW: Tensor, t: Tensor, text: States, inputs: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """What the U-Net adds on its way up. Control is given in [-1, 1]; diffusers' has it in [0, 1]."""
        down, mid = self.branch(
            x_BCHW,
            t,
            encoder_hidden_states=text.states,
            controlnet_cond=(inputs[NAME] / 2 + 0.5).to(x_BCHW.dtype),
            conditioning_scale=self._scale,
            added_cond_kwargs=None if self._size is None else sizes_added(text, self._size),
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def _conditioned(network: nn.Module) -> Any:
    """The part of a network that sees texts."""
    return next(module for module in network.modules() if isinstance(module, TextConditioned))


COMPONENT = ControlNetConfig
