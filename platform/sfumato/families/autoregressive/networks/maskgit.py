"""MaskGIT (Chang, Zhang, Jiang, Liu, Freeman 2022): codes filled in over a few rounds, many at a time.

training    a share cos(pi r / 2) of the codes is masked, r uniform; loss = -log p(code) of these
round s     draw all masked codes; keep the surest, so that a share cos(pi s / 2S) remains masked, sure being
            log p(code) + choice_temperature (1 - s / S) * Gumbel noise
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import LossOut, Nets
from sfumato.core.first_stage import CODES, OpenStage
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.families.autoregressive.code_family import CodeTransformer
from sfumato.families.autoregressive.drawing.draws import draw
from sfumato.families.autoregressive.drawing.reader import Ask
from sfumato.families.autoregressive.layers.masked_network import MaskedNetwork
from sfumato.families.autoregressive.networks import ClassConditional, Parts
from sfumato.families.autoregressive.sampling import SamplingConfig


class MaskGitConfig(ClassConditional):
    """A bidirectional transformer of masked codes (MaskGIT; Chang et al. 2022)."""

    of_codes: ClassVar[bool] = True
    kind: Literal["maskgit"] = Field("maskgit", description="Selects MaskGIT.")

    @classmethod
    def tiny(cls) -> Self:
        """One block of 8 channels."""
        return cls(width=8, layers=1, heads=2)

    def build(self, parts: Parts, data: DataSpec) -> MaskGit:
        """A model of codes."""
        assert parts.stage is not None, "problems() asks for it"
        return MaskGit(self, parts, parts.stage)

    def problems(self, data: DataSpec, sampling: SamplingConfig) -> list[str]:
        """Ways of drawing that are those of causal transformers."""
        if sampling.decoding == "cache":
            return []
        return [f"model.sampling.decoding: {sampling.decoding} has no effect on maskgit; leave it out"]


class MaskGit(CodeTransformer):
    """Trains a `MaskedNetwork`."""

    def __init__(self, config: MaskGitConfig, parts: Parts, stage: OpenStage) -> None:
        self._mask = stage.spec.num_codes
        super().__init__(
            parts,
            stage,
            config.label_dropout,
            lambda: MaskedNetwork(
                stage.spec.num_codes,
                math.prod(stage.spec.latent[1:]),
                parts.classes + 1,
                width=config.width,
                layers=config.layers,
                heads=config.heads,
            ),
        )

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Mean negative log-likelihood of a masked code, in nats."""
        codes_BT = batch[CODES].flatten(1).long()
        label_B = self._labels(batch, rng)
        length = codes_BT.shape[1]
        count_B = (torch.cos(math.pi / 2 * rng.uniform()) * length).ceil().clamp(1, length)
        masked_BT = rng.uniform(length).argsort(1).argsort(1) < count_B[:, None]
        logits_BTL = nets["network"](codes_BT.masked_fill(masked_BT, self._mask), label_B)
        nats_BT = F.cross_entropy(logits_BTL.transpose(1, 2), codes_BT, reduction="none")
        loss_B = (nats_BT * masked_BT).sum(dim=1) / count_B
        return LossOut(loss_B, {"bits_per_code": loss_B.detach() / math.log(2)})

    def _draw(self, nets: Nets, ask: Ask, rng: SampleRng) -> Tensor:
        """Codes [N, T], from two uniform numbers for each of them and each round."""
        options, device = ask.options, ask.label_N.device
        rounds, length = options.steps, ask.length
        uniform = rng.uniform(rounds, 2, length).to(device)
        codes_NT = torch.full((rng.rows, length), self._mask, device=device)
        codes_NT[:, : ask.known_NT.shape[1]] = ask.known_NT
        free = length - ask.known_NT.shape[1]
        for number in range(rounds):
            masked_NT = codes_NT == self._mask
            logits = self._guided(nets, ask, codes_NT)
            flat = draw(logits.flatten(0, 1), uniform[:, number, 0].flatten(), **options.limits)
            drawn_NT = torch.where(masked_NT, flat.view(codes_NT.shape), codes_NT)
            done = (number + 1) / rounds
            left = math.floor(free * math.cos(math.pi / 2 * done)) if number < rounds - 1 else 0
            left = max(0, min(left, int(masked_NT[0].sum()) - 1))
            chance = torch.log_softmax(logits, dim=2).gather(2, drawn_NT[..., None])[..., 0]
            noise = -torch.log(-torch.log(uniform[:, number, 1].clamp(1e-7, 1 - 1e-7)))
            sure = chance + options.choice_temperature * (1 - done) * noise
            sure = sure.masked_fill(~masked_NT, torch.inf)
            again_NT = sure.argsort(dim=1, stable=True).argsort(dim=1) < left
            codes_NT = drawn_NT.masked_fill(again_NT, self._mask)
        return codes_NT

    def _guided(self, nets: Nets, ask: Ask, codes_NT: Tensor) -> Tensor:
        """Logits, led away from those of no class."""
        network, weight = nets["ema"], ask.options.guidance
        if not ask.guided or weight == 1:
            plain: Tensor = network(codes_NT, ask.label_N)
            return plain
        label_N = torch.cat([ask.label_N, torch.full_like(ask.label_N, ask.null_class)])
        given, free = network(torch.cat([codes_NT, codes_NT]), label_N).chunk(2)
        guided: Tensor = free + weight * (given - free)
        return guided


COMPONENT = MaskGitConfig
