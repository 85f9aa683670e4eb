"""The family of causal transformers over the codes of a frozen quantised autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import Batch
from sfumato.core.family import EmaOf, Frozen, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.first_stage import CODES, OpenStage, Tokenizer, codes_of
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.errors import ConfigError
from sfumato.families.autoregressive.drawing.decoding import draw_codes
from sfumato.families.autoregressive.drawing.reader import Ask
from sfumato.families.autoregressive.networks import PREFIX, Parts
from sfumato.families.autoregressive.sampling import SamplingConfig


class CodeTransformer:
    """Implements `core.family.Family`. It has no `bits_per_dim`: codes are a part of an image's content."""

    def __init__(
        self, parts: Parts, stage: OpenStage, label_dropout: float, build: Callable[[], nn.Module]
    ) -> None:
        """`build` makes a `code_model.CodeModel` with one class token more than classes."""
        self.stage = stage
        self._grid = stage.spec.latent[1:]
        self._length = math.prod(self._grid)
        self._classes = parts.classes
        self._label_dropout = label_dropout if self._classes else 0.0
        self.samplers: Sequence[str] = ("ema", "first_stage")
        nets: dict[str, NetSpec] = {
            "network": Trainable(build=build, optimizer=parts.optimizer),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
            "first_stage": Frozen(build=stage.spec.build, weights=stage.stored),
        }
        if parts.draft is not None:
            nets["draft"] = Frozen(build=parts.draft.build, weights=parts.draft.weights)
            self.samplers = (*self.samplers, "draft")
        self.nets: Mapping[str, NetSpec] = nets
        self.phases: Sequence[Phase] = (Phase(name="likelihood", trains="network", loss=self._loss),)

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """Adds `codes` [B, h, w], unless the data has them."""
        stage = nets["first_stage"]
        assert isinstance(stage, Tokenizer)
        return {**batch, CODES: codes_of(stage, batch)}

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]; without labels a conditional model draws from no class.

        With `keep`, the codes of the first part of the image given as `prefix` are kept. Raises ConfigError
        if it was trained without dropping labels: its class token was never trained.
        """
        network, stage, options = nets["ema"], nets["first_stage"], request.options
        assert isinstance(stage, Tokenizer)
        asked_N = request.tensor("label") if self._classes else None
        if self._classes and asked_N is None and not self._label_dropout:
            raise ConfigError(
                "labels: required; this transformer was trained without dropping labels, so it knows no "
                "null class"
            )
        label_N = torch.full((rng.rows,), self._classes) if asked_N is None else asked_N
        device = next(network.parameters()).device
        known_NT = self._known(stage, request, rng.rows, device)
        ask = Ask(label_N.to(device), self._length, self._classes, asked_N is not None, options, known_NT)
        return stage.decode_codes(self._draw(nets, ask, rng).view(-1, *self._grid))

    def _draw(self, nets: Nets, ask: Ask, rng: SampleRng) -> Tensor:
        """Codes [N, T]."""
        rejects = ask.options.decoding == "speculative" and ask.options.speculation == "rejection"
        uniform_NT = rng.uniform(self._length, *([3] if rejects else [])).to(ask.label_N.device)
        return draw_codes(nets["ema"], ask, uniform_NT, nets.get("draft"))

    def _known(self, stage: Tokenizer, request: SampleRequest, rows: int, device: torch.device) -> Tensor:
        """The codes [N, t] that are kept of the image to be completed."""
        options: SamplingConfig = request.options
        given = prefix_of(request)
        count = 0 if given is None else round(options.keep * self._length)
        if given is None or not count:
            return torch.zeros(rows, 0, dtype=torch.int64, device=device)
        return stage.codes(given.to(device)).flatten(1)[:, :count].long()

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """Mean negative log-likelihood of a code, in nats."""
        codes_BT = batch[CODES].flatten(1).long()
        label_B = self._labels(batch, rng)
        logits_BTL = nets["network"](codes_BT[:, :-1], label_B)
        loss_B = F.cross_entropy(logits_BTL.transpose(1, 2), codes_BT, reduction="none").mean(dim=1)
        return LossOut(loss_B, {"bits_per_code": loss_B.detach() / math.log(2)})

    def _labels(self, batch: Batch, rng: Rng) -> Tensor:
        """The class tokens, some dropped: the last one stands for no class."""
        none_B = torch.full((rng.rows,), self._classes, device=batch[CODES].device)
        if not self._classes:
            return none_B
        return torch.where(rng.uniform() < self._label_dropout, none_B, batch["label"])


def prefix_of(request: SampleRequest) -> Tensor | None:
    """The image to be completed [N, C, H, W]; None without `keep`. Raises ConfigError if none is given."""
    if not request.options.keep:
        return None
    given = request.tensor(PREFIX)
    if given is None:
        raise ConfigError(f"{PREFIX}: sampling.keep={request.options.keep:g} needs images to complete")
    return given
