"""Flows of texts: the pooled text where other flows have a class."""

from __future__ import annotations

from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.flow.bijection import fitting
from sfumato.families.flow.config import FlowConfig
from sfumato.families.flow.family import FlowFamily
from sfumato.families.flow.network import FlowNetwork
from sfumato.layers.vector_condition import take_vectors
from sfumato.text.config import TextConfig
from sfumato.text.pooled import PooledTexts

CLASSES = 16
"""Of the network whose embeddings are replaced; their spread counts, not their number."""


class TextFlowFamily(FlowFamily):
    """As `FlowFamily`."""

    def __init__(self, config: FlowConfig, data: DataSpec, text: TextConfig) -> None:
        super().__init__(config, data)
        self._text = PooledTexts(text)
        self._classes = CLASSES
        self.nets = {**self._text.frozen, **self.nets}
        self.samplers = (*self.samplers, *self._text.frozen)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch with the inputs of its texts."""
        return self._text.prepare(nets, batch, rng)

    def initialise(self, nets: Nets, batch: Batch, rng: Rng) -> None:
        """As `FlowFamily.initialise`."""
        with fitting(nets["network"]):
            self._bits_per_dim(nets["network"], self._text.whole(nets, batch), rng)

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """As `FlowFamily.sample`; without texts, for the empty one."""
        asked = self._text.asked(nets, request)
        return super().sample(self._text.inner(nets), asked, progress, rng)

    def decode_latents(self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress) -> Tensor:
        """As `FlowFamily.decode_latents`."""
        asked = self._text.asked(nets, request)
        return super().decode_latents(self._text.inner(nets), z_ND, asked, progress)

    def encode_latents(
        self, nets: Nets, image_NCHW: Tensor, request: SampleRequest, progress: Progress
    ) -> Tensor:
        """As `FlowFamily.encode_latents`."""
        asked = self._text.asked(nets, request)
        return super().encode_latents(self._text.inner(nets), image_NCHW, asked, progress)

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """As `FlowFamily.bits_per_dim`, given the texts."""
        return self._bits_per_dim(nets["ema"], self._text.whole(nets, batch), rng)

    def _build(self) -> nn.Module:
        network = super()._build()
        assert isinstance(network, FlowNetwork)
        return self._text.wrap(take_vectors(network, self._text.condition.config.shape().pooled))

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        return super()._loss(nets, self._text.labelled(batch), progress, rng)
