"""How often a codebook's codes are used: a moving count, as state of the family, and its figures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sfumato.core.state import State
from sfumato.families.vae.quantizers import QuantizerConfig

DECAY = 0.99
"""Weight of the old count in a step's update."""
_RARE = (1 - DECAY) * DECAY**100
"""The count of a code that came once, a hundred steps ago."""


class CodeUse:
    """Counts [codebooks, codes of each], a part of the state (`autoencoder.StatePart`)."""

    def __init__(self, quantizer: QuantizerConfig, name: str = "code_use") -> None:
        self._quantizer, self._name = quantizer, name
        self.state: State = {name: torch.zeros(quantizer.tally_shape, dtype=torch.float64)}

    def sums(self, codes_Bhw: Tensor) -> Mapping[str, Tensor]:
        """How often each code occurs in these rows."""
        digits_DN = self._quantizer.digits(codes_Bhw).flatten(1)
        count = torch.zeros(self._quantizer.tally_shape, dtype=torch.float64, device=codes_Bhw.device)
        return {self._name: count.scatter_add(1, digits_DN, torch.ones_like(digits_DN, dtype=torch.float64))}

    def advance(self, state: State, sums: State) -> State:
        """The count after a step; as it is where no codes were counted."""
        old = state[self._name]
        new = sums.get(self._name)
        if new is None:
            return {self._name: old}
        return {self._name: torch.where(new.sum() > 0, DECAY * old + (1 - DECAY) * new, old)}

    def metrics(self, state: State) -> Mapping[str, Tensor]:
        """Perplexity of the codes' use, exp of the entropy, and the share of codes used in the last hundred
        steps or so; means over codebooks."""
        count = state[self._name]
        share = count / count.sum(1, keepdim=True).clamp_min(1e-30)
        perplexity = (-torch.xlogy(share, share).sum(1)).exp().mean()
        return {"perplexity": perplexity, "codes_in_use": (count > _RARE).double().mean()}
