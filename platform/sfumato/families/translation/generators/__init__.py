"""Translators: an image [B, C, H, W] in, an image [B, C', H, W] in [-1, 1] out. A file here is one of
them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from sfumato.core.components import Component, Components


class GeneratorConfig(Component, ABC):
    """Kind and size of a translator."""

    @abstractmethod
    def build(self, inputs: int, outputs: int) -> nn.Module:
        """A translator from `inputs` to `outputs` channels, with weights from torch's global generator."""

    @abstractmethod
    def problems(self, height: int, width: int) -> list[str]:
        """Why it cannot translate images of this size, one line each."""

    @property
    def couples_rows(self) -> bool:
        """Whether a row depends on the others of its micro-batch: dropout draws for all of them at once."""
        return False


GENERATORS: Components[GeneratorConfig] = Components(
    "sfumato.families.translation.generators", GeneratorConfig, default="resnet"
)
