"""The network that a model trains: how it is built, and the pretrained weights that it starts from.

From the outside in it is a `LatentNetwork` (of latents), a `TextConditioned` (of texts), and the network of
the recipe; an adapter is added to the whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import Frozen, Nets, Trainable
from sfumato.core.pretrained_model import PretrainedModel
from sfumato.core.rng import Rng
from sfumato.core.stored import Weights
from sfumato.families.diffusion.adapters import AdapterConfig
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.latent import LatentNetwork
from sfumato.families.diffusion.networks import TextNetworkConfig
from sfumato.families.diffusion.parts import Parts
from sfumato.text.network import TextConditioned


class Backbone:
    """The network of a model of these parts."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._config = parts, parts.config

    def trainable(self) -> Trainable:
        """The network; with its pretrained weights and its adapter, if it has them."""
        source, adapter = self._config.pretrained, self._config.adapter
        objective = self._parts.objective
        return Trainable(
            build=self._build,
            optimizer=self._config.optimizer,
            weights=objective.weights() if source is None else self._weights(source, adapter),
            adapter=() if adapter is None or source is None else adapter.trained(),
        )

    def before_tuning(self, source: PretrainedModel) -> Frozen:
        """The network as it was pretrained, without an adapter."""
        return Frozen(build=self.plain, weights=self._weights(source, None))

    def begin(self, nets: Nets, batch: Batch, rng: Rng) -> None:
        """What the adapter takes from the base's weights; implements `core.family.InitialisesFromData`."""
        assert self._config.adapter is not None, "assigned only then"
        self._config.adapter.begin(nets["network"])

    def plain(self) -> nn.Module:
        """The network without its adapter, with weights drawn from torch's global generator."""
        network, space = self._without_latents(), self._parts.space
        return network if space is None else space.wrap(network)

    def _build(self) -> nn.Module:
        network = self.plain()
        return network if self._config.adapter is None else self._config.adapter.added(network)

    def _without_latents(self) -> nn.Module:
        parts, network = self._parts, self._config.network
        outputs = parts.objective.outputs
        if parts.text is not None:
            assert isinstance(network, TextNetworkConfig), "checked among the problems"
            shape = parts.text.config.shape()
            return parts.text.wrap(network.build_for_text(parts.data, shape, outputs=outputs))
        more: dict[str, Any] = {} if outputs == 1 else {"outputs": outputs}
        if parts.objective.spans:
            more["spans"] = True  # networks of others need not know what they are not asked for
        if parts.objective.uncertain:
            more["uncertain"] = True
        if parts.objective.changes:
            more["changes"] = parts.objective.changes
        if parts.alignment is not None:
            more["told"] = parts.alignment.told
        return network.build(parts.data, conditional=parts.conditional, **more)

    def _weights(self, source: PretrainedModel, adapter: AdapterConfig | None) -> Weights | None:
        """Of a run all; of a folder of diffusers those of its network, which others are built around."""
        inside, fresh = ("", ()) if adapter is None else (adapter.inside, adapter.fresh())
        if source.source[0] == "run":
            found = source.weights(inside=inside, fresh=fresh)
        else:
            found = source.weights(
                into=".".join(self._around()),
                fresh=("latent_scale", "latent_shift", "*.encoders.*", "encoders.*", *fresh),
                inside=inside,
            )
        text = self._parts.text
        if found is None or text is None or not text.stored:
            return found
        around = ".".join(["network"] * (self._parts.space is not None) + ["encoders"])
        also = [
            replace(stored, into=f"{around}.{name}.{stored.into}".rstrip("."))
            for name, stored in text.stored.items()
        ]
        return replace(found, also=tuple(also), fresh=(*found.fresh, "*.tokenizer"))

    def _around(self) -> list[str]:
        """The names on the way from the network that trains to that of a library in it."""
        outer = [] if self._parts.space is None else ["network"]
        if self._parts.text is None:
            return outer
        network = self._config.network
        assert isinstance(network, TextNetworkConfig), "checked among the problems"
        return [*outer, "network", network.inner]


def plain_network(config: DiffusionConfig, data: DataSpec) -> nn.Module:
    """The network without its adapter, on the meta device."""
    adapter = config.adapter
    if adapter is None or not adapter.reaches_encoders:  # else its encoders are a part of the network
        config = config.model_copy(update={"adapter": None})
    backbone = Backbone(Parts.of(config, data))
    with torch.device("meta"):
        return backbone.plain()


def of_texts(network: nn.Module) -> TextConditioned:
    """The part of the network that holds its text encoders."""
    inner = network.network if isinstance(network, LatentNetwork) else network
    assert isinstance(inner, TextConditioned), "built by TextCondition.wrap"
    return inner
