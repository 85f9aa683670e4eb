"""A reference picture, which need not lie as the drawn one does: a small network that trains turns it into
tokens, which stand beside those of the text (Jia et al. 2023, "Taming Encoder", sec. 3.2; Yang et al. 2023,
Paint by Example, sec. 3.2, with a frozen encoder).

Without a reference, learnt tokens stand in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.families.diffusion.adapters import AdapterConfig, Look, anywhere, unmatched
from sfumato.families.diffusion.steering import Entering, core, enter, width_of_tokens
from sfumato.text.states import States

NAME, HERE = "reference", "reference_here"


class ReferenceConfig(AdapterConfig):
    """Tokens of another picture."""

    names: ClassVar[tuple[str, ...]] = (NAME, HERE)
    kind: Literal["reference"] = Field("reference", description="Selects control by a reference picture.")
    column: str = Field("reference", description="The column of the data that holds the other picture.")
    channels: int = Field(3, ge=1, description="Channels of that picture.")
    side: int = Field(4, ge=1, description="The picture becomes side x side tokens.")
    width: int = Field(64, ge=8, multiple_of=8, description="Channels of the network that reads it.")
    train: tuple[str, ...] = Field(
        (), description="Patterns over the names of the base's tensors that train too; [] is none."
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of pictures that training replaces by none, for image_guidance."
    )

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The picture, which may be left out."""
        column = data.columns.get(self.column)
        shape = (self.channels, data.height, data.width) if column is None else tuple(column.shape)
        return (Condition(NAME, self.column, "image", shape=shape),)

    def inputs(self, rows: Mapping[str, Any], look: Look) -> dict[str, Tensor]:
        """The picture, and whether there is one."""
        if self.column not in rows:
            return {}
        image_BCHW: Tensor = rows[self.column]
        here_B = torch.ones(len(image_BCHW), device=image_BCHW.device)
        dropped_B = look.dropped(self.dropout)
        return {NAME: image_BCHW, HERE: here_B if dropped_B is None else (~dropped_B).float()}

    @property
    def droppable(self) -> bool:
        """With dropout."""
        return self.dropout > 0

    def without(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """No picture."""
        return {name: torch.zeros_like(value) if name == HERE else value for name, value in inputs.items()}

    def trained(self) -> tuple[str, ...]:
        """What reads the picture, and the chosen tensors."""
        return ("*entering.*", *anywhere(self.train))

    def fresh(self) -> tuple[str, ...]:
        """What reads the picture."""
        return ("*entering.*",)

    def added(self, network: nn.Module) -> nn.Module:
        """With tokens of the picture beside those of the text."""
        width = width_of_tokens(core(network))
        assert width is not None, "checked among the problems"
        enter(network, ReferenceTokens(self, width))
        return network

    def problems(self, network: nn.Module) -> list[str]:
        """A network that attends to no tokens; patterns that match nothing."""
        if width_of_tokens(core(network)) is None:
            return ["model.adapter: reference gives tokens; use a network of texts: unet_text, mmdit, pixart"]
        return unmatched(self.train, list(network.state_dict()), "model.adapter.train")

    def data_problems(self, data: DataSpec) -> list[str]:
        """A column that is missing, or has other channels."""
        found = data.columns.get(self.column)
        if found is None or found.kind != "image" or found.shape[0] != self.channels:
            has = ", ".join(data.columns)
            return [
                (
                    f"model.adapter.column: the data has no image {self.column!r} of {self.channels} channels"
                    f", only {has}; name it in data.columns, and set channels"
                )
            ]
        return []

    @classmethod
    def tiny(cls) -> Self:
        """Of the images themselves."""
        return cls(column="image", channels=1, side=2, width=8)


class ReferenceTokens(Entering):
    """Two halvings and two layers, pooled to a grid, with places."""

    tokens: ClassVar[bool] = True

    def __init__(self, config: ReferenceConfig, width: int) -> None:
        super().__init__()
        inner, count = config.width, config.side**2
        self._read = nn.Sequential(
            nn.Conv2d(config.channels, inner, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(inner, inner, 3, stride=2, padding=1),
            nn.GroupNorm(8, inner),
            nn.SiLU(),
            nn.Conv2d(inner, inner, 3, stride=2, padding=1),
            nn.GroupNorm(8, inner),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(config.side),
        )
        self._out = nn.Linear(inner, width)
        self._norm = nn.LayerNorm(width)
        self._place_TD = nn.Parameter(0.02 * torch.randn(count, width))
        self._none_TD = nn.Parameter(0.02 * torch.randn(count, width))

    def forward(
        self, x_BCHW: Tensor, text: States | None, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, States | None]:
        """The states with tokens of the picture after those of the text."""
        assert text is not None, "a network of texts"
        none_BTD = self._none_TD.expand(len(x_BCHW), -1, -1)
        if NAME in inputs:
            seen_BTD = self._norm(self._out(self._read(inputs[NAME]).flatten(2).transpose(1, 2)))
            here_B11 = inputs[HERE].view(-1, 1, 1).to(seen_BTD.dtype)
            none_BTD = here_B11 * (seen_BTD + self._place_TD) + (1 - here_B11) * none_BTD
        mask_BT = torch.ones(none_BTD.shape[:2], dtype=torch.bool, device=none_BTD.device)
        return x_BCHW, States(
            torch.cat([text.states, none_BTD.to(text.states.dtype)], dim=1),
            torch.cat([text.mask, mask_BT], dim=1),
            text.pooled,
        )


COMPONENT = ReferenceConfig
