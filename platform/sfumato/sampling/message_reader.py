"""Reads the message in pictures by a model that was trained to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sfumato.core.messages import ReadsMessages
from sfumato.errors import ConfigError
from sfumato.provenance.watermarks import Detection, Message, p_value
from sfumato.sampling.generator import Generator
from sfumato.sampling.noise_reader import fitted
from sfumato.sampling.pixels import Images, from_uint8


class MessageReader:
    """A model that reads, and the message that is looked for: its own, or for one without any the given
    one."""

    block = 1

    def __init__(self, model: Generator, message: str | None = None) -> None:
        """Raises ConfigError: no message, or another one than the model's own."""
        family = model.family
        assert isinstance(family, ReadsMessages), "asked where it was opened"
        own = family.message
        if own is not None and message not in (None, own):
            raise ConfigError(f"--message: {model.name} signs with {own}; leave it out")
        if (own or message) is None:
            raise ConfigError(f"--message: {model.name} reads any message; say which one is looked for")
        self.message = str(own or message)
        self._family, self._model = family, model
        self._bits = Message(message=self.message).bits

    @torch.no_grad()
    def read(self, images: Sequence[Images]) -> list[Detection]:
        """What is found in images uint8 [H, W, C] of any sizes."""
        return [self._read(image) for image in images]

    def _read(self, image_HWC: Images) -> Detection:
        height, width = image_HWC.shape[:2]
        image = fitted(image_HWC, height, width, self._model.data.channels)
        x_NCHW = from_uint8(image[None]).to(self._model.device)
        found = self._family.read_message(self._model.nets, x_NCHW)[0].cpu().numpy()
        matched = int(np.sum((found > 0) == (self._bits > 0)))
        return Detection(matched, p_value(matched))
