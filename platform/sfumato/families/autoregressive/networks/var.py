"""VAR (Tian, Jiang, Yuan, Peng, Wang 2024): grids of codes from coarse to fine, all codes of a grid at once.

training    loss = -log p(codes of scale k | scales before it), the mean over the codes of all scales
sampling    scale by scale; guidance w gives scale k = 0 .. K - 1 the logits g + (w - 1) k / (K - 1) (g - n),
            where g are those of the class and n those of none

The first stage is an autoencoder with latent.kind=vq_scales.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets, SampleRequest
from sfumato.core.first_stage import CODES, OpenStage, ScaleTokenizer, latent_of
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.stored import StageSpec
from sfumato.errors import ConfigError
from sfumato.families.autoregressive.code_family import CodeTransformer
from sfumato.families.autoregressive.drawing.draws import draw
from sfumato.families.autoregressive.layers.scale_network import ScaleNetwork
from sfumato.families.autoregressive.networks import ClassConditional, Parts
from sfumato.families.autoregressive.sampling import SamplingConfig

INPUTS = "scale_inputs"
"""The column of a prepared batch that holds what the scales after the first are told."""


class VarConfig(ClassConditional):
    """A transformer that predicts the next scale (VAR; Tian et al. 2024)."""

    of_latents: ClassVar[bool] = True
    of_scales: ClassVar[bool] = True
    kind: Literal["var"] = Field("var", description="Selects VAR.")
    width: int = Field(128, ge=1, description="Channels of the transformer (paper: 64 for each layer).")
    heads: int = Field(4, ge=1, description="Attention heads, a divisor of the width (paper: as layers).")

    @property
    def completes(self) -> bool:
        """It draws whole grids."""
        return False

    @classmethod
    def tiny(cls) -> Self:
        """One block of 8 channels."""
        return cls(width=8, layers=1, heads=2)

    def build(self, parts: Parts, data: DataSpec) -> Var:
        """A model of scales."""
        assert parts.stage is not None, "problems() asks for it"
        return Var(self, parts, parts.stage)

    def problems(self, data: DataSpec, sampling: SamplingConfig) -> list[str]:
        """Ways of drawing that are those of causal transformers."""
        if sampling.decoding == "cache":
            return []
        return [f"model.sampling.decoding: {sampling.decoding} has no effect on var; leave it out"]

    def stage_problems(self, stage: StageSpec) -> list[str]:
        """A first stage of one scale."""
        if stage.scales:
            return []
        fix = "train one with latent.kind=vq_scales"
        return [f"model.first_stage.run: var needs codes of several scales; {fix}"]


class Var(CodeTransformer):
    """Trains a `ScaleNetwork`."""

    def __init__(self, config: VarConfig, parts: Parts, stage: OpenStage) -> None:
        spec = self._spec = stage.spec
        super().__init__(
            parts,
            stage,
            config.label_dropout,
            lambda: ScaleNetwork(
                spec.scale_codes,
                spec.latent[0],
                spec.scales,
                parts.classes + 1,
                width=config.width,
                layers=config.layers,
                heads=config.heads,
            ),
        )

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """Adds `codes` [B, L] of all scales, and what the scales after the first are told of them."""
        stage = _tokenizer(nets)
        codes_BL = stage.scale_codes(latent_of(stage, batch).mean)
        before = codes_BL.shape[1] - self._spec.scales[-1] ** 2
        inputs = stage.scale_inputs(codes_BL[:, :before]) if before else self._nothing(codes_BL)
        return {**batch, CODES: codes_BL, INPUTS: inputs}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]; without labels a conditional model draws from no class.

        Raises ConfigError if it was trained without dropping labels: its class token was never trained.
        """
        network, stage, options = nets["ema"], _tokenizer(nets), request.options
        asked_N = request.tensor("label") if self._classes else None
        if self._classes and asked_N is None and not self._label_dropout:
            raise ConfigError("labels: required; var was trained without dropping labels")
        device = next(network.parameters()).device
        none_N = torch.full((rng.rows,), self._classes, device=device)
        label_N = none_N if asked_N is None else asked_N.to(device)
        weight = 1.0 if asked_N is None else options.guidance
        scales = self._spec.scales
        uniform_NL = rng.uniform(sum(side**2 for side in scales)).to(device)
        codes_NL = torch.zeros(rng.rows, 0, dtype=torch.int64, device=device)
        for at, side in enumerate(scales):
            inputs = stage.scale_inputs(codes_NL) if at else self._nothing(codes_NL)
            logits = network(inputs, label_N)[:, -(side**2) :]
            if weight != 1:
                free = network(inputs, none_N)[:, -(side**2) :]
                logits = logits + (weight - 1) * at / max(1, len(scales) - 1) * (logits - free)
            first = codes_NL.shape[1]
            drawn = draw(
                logits.flatten(0, 1), uniform_NL[:, first : first + side**2].flatten(), **options.limits
            )
            codes_NL = torch.cat([codes_NL, drawn.view(rng.rows, -1)], 1)
        return stage.decode_scales(codes_NL)

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Mean negative log-likelihood of a code, in nats."""
        codes_BL = batch[CODES].long()
        logits_BLK = nets["network"](batch[INPUTS], self._labels(batch, rng))
        loss_B = F.cross_entropy(logits_BLK.transpose(1, 2), codes_BL, reduction="none").mean(dim=1)
        return LossOut(loss_B, {"bits_per_code": loss_B.detach() / math.log(2)})

    def _nothing(self, codes_BL: Tensor) -> Tensor:
        return torch.zeros(len(codes_BL), 0, self._spec.latent[0], device=codes_BL.device)


def _tokenizer(nets: Nets) -> ScaleTokenizer:
    stage = nets["first_stage"]
    assert isinstance(stage, ScaleTokenizer), "stage_problems() refuses others"
    return stage


COMPONENT = VarConfig
