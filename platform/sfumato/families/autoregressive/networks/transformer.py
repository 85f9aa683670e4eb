"""A transformer over the codes of a frozen quantised autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, Frozen, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.first_stage import CODES, OpenStage, Tokenizer, codes_of
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.errors import ConfigError
from sfumato.families.autoregressive.code_network import Cache, CodeNetwork
from sfumato.families.autoregressive.draws import draw
from sfumato.families.autoregressive.networks import DEFAULT_LABEL_DROPOUT, NetworkConfig, Parts
from sfumato.families.autoregressive.sampling import SamplingConfig


class TransformerConfig(NetworkConfig):
    """A decoder transformer over the codes of a frozen quantised autoencoder (Esser et al. 2021)."""

    of_codes: ClassVar[bool] = True
    kind: Literal["transformer"] = Field("transformer", description="Selects the model of codes.")
    width: int = Field(128, ge=1, description="Channels of the residual stream.")
    layers: int = Field(4, ge=1, description="Blocks of attention and MLP.")
    heads: int = Field(4, ge=1, description="Attention heads, a divisor of the width.")
    label_dropout: float = Field(
        DEFAULT_LABEL_DROPOUT,
        ge=0,
        lt=1,
        description="Share of labels that training drops, which guidance needs.",
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            near = max(1, round(self.width / self.heads)) * self.heads
            raise ValueError(
                f"width: {self.width} is no multiple of heads={self.heads}; the nearest is {near}"
            )
        return self

    @property
    def dropped(self) -> float:
        """As set."""
        return self.label_dropout

    @classmethod
    def tiny(cls) -> Self:
        """Two blocks of 8 channels."""
        return cls(width=8, layers=2, heads=2)

    def build(self, parts: Parts, data: DataSpec) -> CodeTransformer:
        """A model of codes."""
        assert parts.stage is not None, "problems() asks for it"
        return CodeTransformer(self, parts, parts.stage)


class CodeTransformer:
    """Implements `core.family.Family`. It has no `bits_per_dim`: codes are a part of an image's content."""

    samplers: Sequence[str] = ("ema", "first_stage")

    def __init__(self, network: TransformerConfig, parts: Parts, stage: OpenStage) -> None:
        self._grid = stage.spec.latent[1:]
        self._length = math.prod(self._grid)
        self._classes = parts.classes
        self._label_dropout = network.label_dropout if self._classes else 0.0
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(
                build=lambda: CodeNetwork(
                    stage.spec.num_codes,
                    self._length,
                    self._classes + 1,
                    width=network.width,
                    layers=network.layers,
                    heads=network.heads,
                ),
                optimizer=parts.optimizer,
            ),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
            "first_stage": Frozen(build=stage.spec.build, weights=stage.stored),
        }
        self.phases: Sequence[Phase] = (Phase(name="likelihood", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """Adds `codes` [B, h, w], unless the data has them."""
        stage = nets["first_stage"]
        assert isinstance(stage, Tokenizer)
        return {**batch, CODES: codes_of(stage, batch)}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]; without labels a conditional model draws from no class.

        Raises ConfigError if it was trained without dropping labels: its class token was never trained.
        """
        network, stage = nets["ema"], nets["first_stage"]
        assert isinstance(network, CodeNetwork)
        assert isinstance(stage, Tokenizer)
        asked_N = request.tensor("label") if self._classes else None
        if self._classes and asked_N is None and not self._label_dropout:
            raise ConfigError(
                "labels: required; this transformer was trained without dropping labels, so it knows no "
                "null class"
            )
        label_N = torch.full((rng.rows,), self._classes) if asked_N is None else asked_N
        device = network.positions.device
        uniform_NT = rng.uniform(self._length).to(device)
        guided = asked_N is not None
        codes_NT = draw_codes(network, label_N.to(device), uniform_NT, request.options, self._classes, guided)
        return stage.decode_codes(codes_NT.view(-1, *self._grid))

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Mean negative log-likelihood of a code, in nats."""
        codes_BT = batch[CODES].flatten(1).long()
        label_B = self._labels(batch, rng)
        logits_BTL, _ = nets["network"](codes_BT[:, :-1], label_B)
        loss_B = F.cross_entropy(logits_BTL.transpose(1, 2), codes_BT, reduction="none").mean(dim=1)
        return LossOut(loss_B, {"bits_per_code": loss_B.detach() / math.log(2)})

    def _labels(self, batch: Batch, rng: Rng) -> Tensor:
        """The class tokens, some dropped: the last one stands for no class."""
        none_B = torch.full((rng.rows,), self._classes, device=batch[CODES].device)
        if not self._classes:
            return none_B
        return torch.where(rng.uniform() < self._label_dropout, none_B, batch["label"])


def draw_codes(
    network: CodeNetwork,
    label_N: Tensor,
    uniform_NT: Tensor,
    options: SamplingConfig,
    null_class: int,
    guided: bool,
) -> Tensor:
    """Codes int64 [N, T], one a position, each from a uniform number, with a key-value cache.

    Guidance (Ho & Salimans 2022) runs the conditional and the unconditional model side by side in one batch:
    logits = unconditional + weight * (conditional - unconditional).
    """
    both = guided and options.guidance != 1
    if both:
        label_N = torch.cat([label_N, torch.full_like(label_N, null_class)])
    codes_NT = label_N.new_zeros(len(label_N), 0)
    caches: list[Cache] | None = None
    for position in range(uniform_NT.shape[1]):
        logits, caches = network(codes_NT, label_N, caches)
        logits = logits[:, -1]
        if both:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + options.guidance * (conditional - unconditional)
        chosen = draw(logits, uniform_NT[:, position], temperature=options.temperature, top_k=options.top_k)
        codes_NT = torch.cat([codes_NT, (torch.cat([chosen, chosen]) if both else chosen)[:, None]], dim=1)
    return codes_NT[: len(uniform_NT)]


COMPONENT = TransformerConfig
