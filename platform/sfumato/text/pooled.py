"""Pooled texts where a family has classes: as the `label` of batches and requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch
from sfumato.core.family import Nets, SampleRequest
from sfumato.core.rng import Rng
from sfumato.text.condition import TextCondition
from sfumato.text.config import NAME, TextConfig
from sfumato.text.network import TextConditioned
from sfumato.text.states import States


class PooledTexts:
    """The texts of a family whose networks take a vector, the pooled text, in place of a class.

    `build` wraps a network; then a batch's `label` holds the inputs of its texts, and a request's the
    vectors.
    """

    def __init__(self, config: TextConfig) -> None:
        self.condition = TextCondition(config)
        self.frozen = self.condition.frozen

    def wrap(self, network: nn.Module) -> TextConditioned:
        """The network of vectors with the encoders that are trained with it."""
        return self.condition.wrap(network, pooled=True)

    def prepare(self, nets: Nets, batch: Batch, rng: Rng) -> Batch:
        """The batch with the inputs of its texts, some of them dropped."""
        return self.condition.prepare(nets, batch, rng)

    def labelled(self, batch: Batch) -> dict[str, Any]:
        """A prepared batch with its inputs as label."""
        return {**batch, "label": self.condition.of(batch)}

    def whole(self, nets: Nets, batch: Batch) -> dict[str, Any]:
        """A batch that was not prepared, with the inputs of all its texts as label."""
        texts = list(batch[self.condition.config.column])
        return {**batch, "label": self.condition.inputs(nets, texts, batch["image"].device)}

    def asked(self, nets: Nets, request: SampleRequest, name: str = "ema") -> SampleRequest:
        """The request with the vectors of its texts as label; the empty text where there is none."""
        texts = request.texts(NAME) or [""] * request.num
        return replace(request, conditions={"label": self.vectors(nets, texts, name)})

    def seen(self, nets: Nets, request: SampleRequest, name: str = "ema") -> States:
        """All that the encoders make of the request's texts; the empty text where there is none."""
        return self._states(nets, request.texts(NAME) or [""] * request.num, name)

    def vectors(self, nets: Nets, texts: Sequence[str], name: str = "ema") -> Tensor:
        """The pooled texts [N, P], by the encoders in the network `name`."""
        return self._states(nets, texts, name).pooled

    def _states(self, nets: Nets, texts: Sequence[str], name: str) -> States:
        network = nets[name]
        assert isinstance(network, TextConditioned)
        device = next(network.parameters()).device
        with torch.no_grad():
            return network.seen(network.encoded(self.condition.inputs(nets, texts, device)))

    def inner(self, nets: Nets, name: str = "ema") -> dict[str, nn.Module]:
        """The network of vectors itself."""
        network = nets[name]
        assert isinstance(network, TextConditioned)
        return {name: network.network}


def pooled_problems(text: TextConfig, found: list[str]) -> list[str]:
    """`found`, and a line if no encoder gives a pooled state."""
    if found or text.shape().pooled:
        return found
    return ["model.text: the model sees pooled texts; let an encoder have uses=both or pooled"]
