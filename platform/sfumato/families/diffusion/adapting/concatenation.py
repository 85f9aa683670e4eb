"""Adapters whose image enters as further channels of the network's input (Saharia et al. 2021, sec. 2.3).

They start from a pretrained network or train with a fresh one. A file in `adapters/` says which channels.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.errors import ConfigError
from sfumato.families.diffusion.adapters import AdapterConfig, Look, anywhere, unmatched
from sfumato.families.diffusion.adapting.steering import (
    INSIDE,
    Concatenated,
    Widened,
    core,
    enter,
    first_layer,
    widen,
)

NAME = "further_channels"
ALL = ("*",)


class ConcatenatingConfig(AdapterConfig, ABC):
    """Settings that such adapters share."""

    inside: ClassVar[str] = INSIDE
    needs_base: ClassVar[bool] = False
    of_texts: ClassVar[bool] = False
    names: ClassVar[tuple[str, ...]] = (NAME,)
    pipeline: ClassVar[str] = ""
    """The class of diffusers' pipeline that draws with a U-Net of such channels, if there is one."""
    train: tuple[str, ...] = Field(
        ALL,
        min_length=1,
        description='Patterns over the names of the base\'s tensors that train too; ["*"] is all of them.',
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of images that training replaces by none, which image_guidance needs.",
    )

    @abstractmethod
    def further(self, channels: int) -> int:
        """How many channels are added where the network's own input has `channels`."""

    @abstractmethod
    def shown(self, rows: Mapping[str, Any], look: Look) -> Tensor:
        """The further channels [B, E, h, w]."""

    def inputs(self, rows: Mapping[str, Any], look: Look) -> dict[str, Tensor]:
        """The channels; zeros where the image is dropped."""
        shown_BEhw = self.shown(rows, look)
        dropped_B = look.dropped(self.dropout)
        if dropped_B is not None:
            shown_BEhw = shown_BEhw * (~dropped_B).view(-1, 1, 1, 1)
        return {NAME: shown_BEhw}

    @property
    def droppable(self) -> bool:
        """With dropout."""
        return self.dropout > 0

    def without(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Zeros."""
        return {name: torch.zeros_like(value) if name == NAME else value for name, value in inputs.items()}

    def trained(self) -> tuple[str, ...]:
        """All, or what sees the channels and the chosen tensors."""
        return () if self.train == ALL else ("*.added.*", *anywhere(self.train))

    def fresh(self) -> tuple[str, ...]:
        """What sees the channels."""
        return ("*.added.*",)

    def added(self, network: nn.Module) -> nn.Module:
        """With a wider first layer, in place."""
        found = first_layer(core(network))
        assert found is not None, "checked among the problems"
        layer = getattr(*found)
        widen(network, self.further(layer.in_channels))
        enter(network, Concatenated(NAME))
        return network

    def problems(self, network: nn.Module) -> list[str]:
        """A network whose first layer is unknown; patterns that match nothing."""
        if first_layer(core(network)) is None:
            return [(f"model.adapter: {self.kind} adds channels, which this network cannot see; use a U-Net, "
                    "dit, mmdit or pixart")]  # fmt: skip
        if self.train == ALL:
            return []
        return unmatched(self.train, list(network.state_dict()), "model.adapter.train")

    def in_pipeline(self, pipeline: Any) -> Any:
        """The stock pipeline of such a U-Net."""
        import diffusers

        if type(pipeline).__name__ != "StableDiffusionPipeline" or not self.pipeline:
            what = "for this network" if self.pipeline else "for such channels"
            raise ConfigError(f"diffusers has no pipeline {what}; use --format safetensors")
        parts = {**pipeline.components, "unet": whole_unet(pipeline.unet, self.scale_of(pipeline))}
        return getattr(diffusers, self.pipeline)(**parts, requires_safety_checker=False)

    def scale_of(self, pipeline: Any) -> float:
        """What the pipeline's own further channels have to be multiplied by to be ours."""
        return 1.0

    def image_problems(self, column: str, data: DataSpec, field: str = "column") -> list[str]:
        """A column that is missing, or holds no images of the data's own shape."""
        found = data.columns.get(column)
        if found is None:
            has = ", ".join(data.columns)
            return [f"model.adapter.{field}: the data has no {column!r}, only {has}; name it in data.columns"]
        if found.kind != "image" or tuple(found.shape) != data.shape:
            what, ours = ("x".join(map(str, shape)) for shape in (found.shape, data.shape))
            return [
                (
                    f"model.adapter.{field}: {column!r} is of kind {found.kind}, {what}; name a column of "
                    f"of {ours}"
                )
            ]
        return []


def whole_unet(unet: Any, factor: float) -> Any:
    """A copy of a U-Net with one first layer of all channels."""
    found = copy.deepcopy(unet)
    layer = found.conv_in
    assert isinstance(layer, Widened), "it was widened"
    found.conv_in = layer.whole(factor)
    found.register_to_config(in_channels=found.conv_in.in_channels)
    return found
