"""A transformer over the codes of a frozen quantised autoencoder, steered by texts (Sun et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, Frozen, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.first_stage import CODES, OpenStage, Tokenizer, codes_of
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.autoregressive.networks import Parts, TransformerSize
from sfumato.families.autoregressive.sampling import SamplingConfig
from sfumato.families.autoregressive.text_codes import TextCodeNetwork, drawn
from sfumato.text.condition import TextCondition
from sfumato.text.config import TextConfig
from sfumato.text.network import TextConditioned


class TextTransformerConfig(TransformerSize):
    """A decoder transformer over codes that stand behind the states of a text (LlamaGen; Sun et al. 2024)."""

    of_codes: ClassVar[bool] = True
    takes_texts: ClassVar[bool] = True
    kind: Literal["text_transformer"] = Field("text_transformer", description="Selects codes after a text.")

    @classmethod
    def tiny(cls) -> Self:
        """Two blocks of 8 channels."""
        return cls(width=8, layers=2, heads=2)

    def build(self, parts: Parts, data: DataSpec) -> TextTransformer:
        """A model of codes."""
        assert parts.stage is not None, "problems() asks for it"
        assert parts.text is not None, "problems() asks for it"
        return TextTransformer(self, parts, parts.stage, parts.text)


class TextTransformer:
    """Implements `core.family.Family`. It has no `bits_per_dim`: codes are a part of an image's content."""

    samplers: Sequence[str] = ("ema", "first_stage")

    def __init__(
        self, network: TextTransformerConfig, parts: Parts, stage: OpenStage, text: TextConfig
    ) -> None:
        self._network, self._codes = network, stage.spec.num_codes
        self._grid = stage.spec.latent[1:]
        self._length = math.prod(self._grid)
        self._text = TextCondition(text)
        self.nets: Mapping[str, NetSpec] = {
            **self._text.frozen,
            "network": Trainable(build=self._build, optimizer=parts.optimizer),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
            "first_stage": Frozen(build=stage.spec.build, weights=stage.stored),
        }
        self.samplers = (*self.samplers, *self._text.frozen)
        self.phases: Sequence[Phase] = (Phase(name="likelihood", trains="network", loss=self._loss),)

    def _build(self) -> nn.Module:
        size = self._network
        codes = TextCodeNetwork(
            self._codes,
            self._length,
            self._text.config.shape(),
            width=size.width,
            layers=size.layers,
            heads=size.heads,
        )
        return self._text.wrap(codes)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """Adds `codes` [B, h, w], unless the data has them, and the inputs of texts."""
        stage = nets["first_stage"]
        assert isinstance(stage, Tokenizer)
        return self._text.prepare(nets, {**batch, CODES: codes_of(stage, batch)}, rng)

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1], guided away from the negative text, or the empty one."""
        network, stage = nets["ema"], nets["first_stage"]
        assert isinstance(network, TextConditioned)
        assert isinstance(stage, Tokenizer)
        device = next(network.parameters()).device
        options: SamplingConfig = request.options
        texts, away = self._text.asked(request, rng.rows, options.guidance)
        encoded = network.encoded(self._text.inputs(nets, texts + away, device))
        codes_NT = drawn(
            lambda codes, caches: network(codes, caches, encoded),
            rng.uniform(self._length).to(device),
            options,
            guided=bool(away),
        )
        return stage.decode_codes(codes_NT.view(-1, *self._grid))

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Mean negative log-likelihood of a code, in nats."""
        codes_BT = batch[CODES].flatten(1).long()
        logits_BTL, _ = nets["network"](codes_BT[:, :-1], None, self._text.of(batch))
        loss_B = F.cross_entropy(logits_BTL.transpose(1, 2), codes_BT, reduction="none").mean(dim=1)
        return LossOut(loss_B, {"bits_per_code": loss_B.detach() / math.log(2)})


COMPONENT = TextTransformerConfig
