"""Adapters beside a frozen U-Net of texts that see an image of control: a column of the data, such as edges,
masks or depth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.families.diffusion.adapters import AdapterConfig, Look
from sfumato.families.diffusion.adapting.steering import conditioned, core
from sfumato.families.diffusion.latent import LatentNetwork
from sfumato.families.diffusion.networks.unet_text import TextUNet

NAME = "control"
"""The condition, and what the network gets."""


class ControlConfig(AdapterConfig, ABC):
    """Settings that such adapters share."""

    names: ClassVar[tuple[str, ...]] = (NAME,)
    column: str = Field("control", description="The column of the data that holds the image of control.")
    channels: int = Field(3, ge=1, description="Channels of that image.")
    scale: float = Field(1.0, ge=0, description="Factor on what is added; 0 is the base.")

    @abstractmethod
    def beside(self, network: TextUNet, shrink: int) -> nn.Module:
        """What stands beside this U-Net, whose input is `shrink` times smaller than the images; called with
        (x, t, states, inputs)."""

    @property
    @abstractmethod
    def sized(self) -> bool:
        """Whether a setting says how much larger than the base's input the image of control is."""

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The image, required."""
        column = data.columns.get(self.column)
        shape = (self.channels, data.height, data.width) if column is None else tuple(column.shape)
        return (Condition(NAME, self.column, "image", shape=shape, required=True),)

    def inputs(self, rows: Mapping[str, Any], look: Look) -> dict[str, Tensor]:
        """The images."""
        return {NAME: rows[self.column]}

    def added(self, network: nn.Module) -> nn.Module:
        """With its own part beside the U-Net."""
        inner = core(network)
        assert isinstance(inner, TextUNet), "checked among the problems"
        conditioned(network).beside = self.beside(inner, shrink_of(network))
        return network

    def problems(self, network: nn.Module) -> list[str]:
        """Another network than a U-Net of texts."""
        if isinstance(core(network), TextUNet):
            return []
        return [f"model.adapter: {self.kind} needs a U-Net of texts: unet_text, Stable Diffusion 1, 2 or XL"]

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
        if not self.sized and column.shape[1:] != (data.height, data.width):
            own, images = "x".join(map(str, column.shape[1:])), f"{data.height}x{data.width}"
            found = f"{self.column!r} is {own}, the images are {images}"
            return [f"model.adapter.column: {found}; pack it at their size"]
        return []


@dataclass(frozen=True, slots=True)
class LibraryFiles:
    """A folder of one network of diffusers, which the `from_pretrained` of its class loads."""

    network: Any

    def write(self, folder: Path, name: str) -> None:
        """Into a new folder."""
        self.network.save_pretrained(folder)


def shrink_of(network: nn.Module) -> int:
    """How many pixels of the images an input of the network stands for, along a side."""
    return network.shrink if isinstance(network, LatentNetwork) else 1


def shown(image_BCHW: Tensor, like: Tensor) -> Tensor:
    """An image in [-1, 1] as diffusers' networks of control take it: in [0, 1], of the type of `like`."""
    return (image_BCHW / 2 + 0.5).to(like.dtype)
