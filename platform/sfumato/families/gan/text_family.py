"""GANs of texts: the pooled text modulates the generator and is compared by the discriminator. With
`text_attention`, the generator also attends to the tokens.

Where other GANs have a class, networks take a linear map of the pooled text: gain and bias of the generator's
normalisation, and the vector that the discriminator projects features on (Miyato & Koyama 2018). The
discriminator also learns that a real image with another image's text is wrong ("matching-aware", Reed et al.
2016, algorithm 1), in a phase of its own. Each of the two networks has its own trained encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossFn, LossOut, Nets, Phase, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.family import GanFamily
from sfumato.families.gan.layers.text_attention import TextAttention
from sfumato.families.gan.networks import GeneratorNet
from sfumato.layers.vector_condition import take_vectors
from sfumato.text.config import TextConfig
from sfumato.text.network import TextConditioned
from sfumato.text.pooled import PooledTexts
from sfumato.text.states import States

CLASSES = tuple(map(str, range(16)))
"""Of the networks whose embeddings are replaced; their spread counts, not their number."""


class TextGenerator(TextConditioned):
    """Called with latents and the inputs of texts; the network gets pooled texts, and States to attend to."""

    def forward(self, z_BD: Tensor, inputs: Any, **kwargs: Any) -> Any:
        """The network's images."""
        text = self.seen(self.encoded(inputs))
        return self.network(z_BD, text.pooled, **kwargs, **shown(self.network, text))


def shown(network: nn.Module, text: States) -> dict[str, Any]:
    """What a generator gets of texts besides the pooled ones."""
    return {} if getattr(network, "attention", None) is None else {"text": text}


class TextDiscriminator(TextConditioned):
    """Called with groups of images and the inputs of the texts of each."""

    def forward(self, groups: Sequence[Tensor], texts: Sequence[Any], **kwargs: Any) -> Any:
        """What the network says of each group; equal texts are encoded once."""
        pooled = {id(inputs): self.seen(self.encoded(inputs)).pooled for inputs in texts}
        return self.network(groups, [pooled[id(inputs)] for inputs in texts], **kwargs)


class TextGanFamily(GanFamily):
    """As `GanFamily`."""

    def __init__(self, config: GanConfig, data: DataSpec, text: TextConfig) -> None:
        self._text = PooledTexts(text)
        self._own_loss = config.objective.loss
        of_classes = config.model_copy(update={"text": None, "condition": "class"})
        super().__init__(of_classes, replace(data, classes=CLASSES))
        self.nets = {**self._text.frozen, **self.nets}
        self.samplers = (*self.samplers, *self._text.frozen)
        told = [replace(phase, loss=self._told(phase.loss)) for phase in self.phases]
        matching = Phase(name="matching", trains="discriminator", loss=self._match, clip_grad_norm=None)
        self.phases = [*told, matching] if config.matching else told

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch with the inputs of its texts."""
        return self._text.prepare(nets, batch, rng)

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """As `GanFamily.sample`; without texts, for the empty one."""
        z_ND = self.latents(nets, request.options, progress, rng)
        return self.decode_latents(nets, z_ND, request, progress)

    def decode_latents(
        self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress, **_: Any
    ) -> Tensor:
        """As `GanFamily.decode_latents`."""
        text, inner = self._text.seen(nets, request), self._text.inner(nets)
        asked = replace(request, conditions={"label": text.pooled})
        return super().decode_latents(inner, z_ND, asked, progress, **shown(inner["ema"], text))

    def _build_generator(self) -> nn.Module:
        network = self._of_vectors(super()._build_generator())
        stages, width = self._config.network.stages, self._text.condition.config.shape().width
        if self._config.text_attention:
            assert isinstance(network, GeneratorNet)
            network.attend({at: TextAttention(stages[at], width) for at in self._config.text_attention})
        return TextGenerator(network, self._text.condition.encoders)

    def _build_discriminator(self) -> nn.Module:
        network = self._of_vectors(super()._build_discriminator())
        return TextDiscriminator(network, self._text.condition.encoders)

    def _of_vectors(self, network: nn.Module) -> nn.Module:
        return take_vectors(network, self._text.condition.config.shape().pooled)

    def _told(self, loss: LossFn) -> LossFn:
        """A loss of classes that gets texts for them."""

        def of_texts(nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
            return loss(nets, self._text.labelled(batch), progress, rng)

        return of_texts

    def _match(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Tell real images with their own texts from those with the texts of others in the micro-batch."""
        own = self._text.condition.of(batch)
        others = {name: torch.roll(value, 1, dims=0) for name, value in own.items()}
        real_BCHW = batch["image"]
        right_B, wrong_B = nets["discriminator"]([real_BCHW, real_BCHW], [own, others])
        metrics = {"right_score": right_B.detach(), "wrong_score": wrong_B.detach()}
        return LossOut(self._own_loss.discriminator(right_B, wrong_B), metrics)
