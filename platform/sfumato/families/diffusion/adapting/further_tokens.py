"""Adapters whose image, or its embedding, becomes tokens beside those of the text; learnt ones stand for no
image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.families.diffusion.adapters import AdapterConfig, Look, anywhere, unmatched
from sfumato.families.diffusion.adapting.steering import Entering, core, enter, width_of_tokens
from sfumato.text.states import States


class FurtherTokensConfig(AdapterConfig, ABC):
    """Settings that such adapters share. `names` are what is shown, and whether a row has it (1 or 0)."""

    column: str
    train: tuple[str, ...] = Field(
        (), description="Patterns over the names of the base's tensors that train too; [] is none."
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of images that training leaves out, for image_guidance."
    )

    @abstractmethod
    def entering(self, width: int) -> FurtherTokens:
        """What adds the tokens, of this width."""

    def shown(self, value_B: Tensor, look: Look) -> dict[str, Tensor]:
        """What the network gets of these images or embeddings."""
        name, here = self.names
        dropped_B = look.dropped(self.dropout)
        here_B = torch.ones(len(value_B), device=value_B.device)
        return {name: value_B, here: here_B if dropped_B is None else (~dropped_B).float()}

    @property
    def droppable(self) -> bool:
        """With dropout."""
        return self.dropout > 0

    def without(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """No image."""
        here = self.names[1]
        return {name: torch.zeros_like(value) if name == here else value for name, value in inputs.items()}

    def trained(self) -> tuple[str, ...]:
        """What reads the image, and the chosen tensors."""
        return (*self.fresh(), *anywhere(self.train))

    def fresh(self) -> tuple[str, ...]:
        """What reads the image."""
        return ("*entering.*",)

    def added(self, network: nn.Module) -> nn.Module:
        """With further tokens beside those of the text."""
        width = width_of_tokens(core(network))
        assert width is not None, "checked among the problems"
        enter(network, self.entering(width))
        return network

    def problems(self, network: nn.Module) -> list[str]:
        """A network that attends to no tokens; patterns that match nothing."""
        if width_of_tokens(core(network)) is None:
            return [
                f"model.adapter: {self.kind} gives tokens; use a network of texts: unet_text, mmdit, pixart"
            ]
        return unmatched(self.train, list(network.state_dict()), "model.adapter.train")


class FurtherTokens(Entering, ABC):
    """Adds T tokens of width D to the states of a text."""

    tokens: ClassVar[bool] = True
    _none_TD: nn.Parameter
    """The tokens of a row without an image."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self._name, self._here = names

    @abstractmethod
    def read(self, shown: Tensor) -> Tensor:
        """The tokens [B, T, D] of what is shown."""

    def forward(
        self, x_BCHW: Tensor, text: States | None, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, States | None]:
        """The states with the further tokens after those of the text."""
        assert text is not None, "a network of texts"
        own_BTD = self._none_TD.expand(len(x_BCHW), -1, -1)
        if self._name in inputs:
            here_B11 = inputs[self._here].view(-1, 1, 1)
            own_BTD = here_B11 * self.read(inputs[self._name]) + (1 - here_B11) * own_BTD
        mask_BT = torch.ones(own_BTD.shape[:2], dtype=torch.bool, device=own_BTD.device)
        return x_BCHW, States(
            torch.cat([text.states, own_BTD.to(text.states.dtype)], dim=1),
            torch.cat([text.mask, mask_BT], dim=1),
            text.pooled,
        )
