"""A codebook that follows the encoder by moving averages (van den Oord et al. 2017, app. A.1), with revival.

For code i, in a step whose global batch sends n_i latents with the sum s_i to it,

    N_i <- decay N_i + (1 - decay) n_i,    m_i <- decay m_i + (1 - decay) s_i,    e_i = m_i / N_i

Codes whose N_i falls below `revive_below` are dead, and become a latent of the batch (as in Jukebox, Dhariwal
et al. 2020, sec. 3.1): e_i <- z, N_i <- revive_below. Which latent is a function of the seed and the place in
training: each draws a number, and the one that alone drew i stands for code i. It is found by sums over the
batch, like all the rest, so any number of ranks finds the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.rng import Rng, seeded
from sfumato.core.state import State
from sfumato.families.vae.quantizers import Codebook, FollowingConfig, Quantized, Quantizer

_FEWEST = 1e-30
"""An average below this is left unchanged: a code that is never used or revived keeps its vector."""


class EmaCodebook(FollowingConfig):
    """Codes that are moving averages of the latents nearest to them (van den Oord et al. 2017, app. A.1)."""

    kind: Literal["ema"] = Field("ema", description="Selects a codebook of moving averages.")
    size: int = Field(512, ge=2, description="Number of codes.")
    decay: float = Field(0.99, gt=0, lt=1, description="Weight of the old averages in a step's update.")
    commitment: float = Field(
        0.25, ge=0, description="Weight of the encoder's distance from its codes (van den Oord et al. 2017)."
    )
    revive_below: float = Field(
        1.0,
        ge=0,
        description="A code that fewer latents than this come to in a step, on average, is replaced by a "
        "latent of the batch (Dhariwal et al. 2020); 0 revives none.",
    )

    @property
    def learned(self) -> int:
        """All of a codebook."""
        return self.size

    @property
    def codes(self) -> int:
        return self.size

    @classmethod
    def tiny(cls) -> Self:
        """16 codes that change quickly."""
        return cls(size=16, decay=0.9)

    def build(self, channels: int) -> EmaQuantizer:
        """Build it with the initial codebook."""
        return EmaQuantizer(self, channels)

    def state(self, channels: int) -> State:
        """N [K] and m [K, C], float64: of random vectors of unit variance that count for one latent each."""
        with seeded("codebook", self.size, channels):
            vectors_KC = torch.randn(self.size, channels).double()
        return {"codes.count": torch.ones(self.size, dtype=torch.float64), "codes.sum": vectors_KC}

    def codebook(self, state: State) -> Codebook:
        """The codes' vectors e = m / N."""
        return EmaVectors((state["codes.sum"] / state["codes.count"][:, None]).float())

    def draws(self, rng: Rng, grid: tuple[int, int], batch: int) -> Tensor:
        """Which code each latent would stand for, int64 [B, h, w]: about one latent of the batch for each."""
        return rng.integers(max(self.size, batch * grid[0] * grid[1]), *grid)

    def sums(self, z_BChw: Tensor, codes_Bhw: Tensor, draws_Bhw: Tensor) -> dict[str, Tensor]:
        """The rows' contribution to n and s, and the latents that could revive codes."""
        z_NC = z_BChw.detach().movedim(1, -1).flatten(0, -2).double()
        used, drawn = self._by_code(z_NC, codes_Bhw.flatten()), self._by_code(z_NC, draws_Bhw.flatten())
        return {
            "codes.count": used[0],
            "codes.sum": used[1],
            "revival.count": drawn[0],
            "revival.sum": drawn[1],
        }

    def advance(self, state: State, sums: State) -> State:
        """The averages after a step, dead codes revived; unchanged if no latent was counted."""
        if not sums:
            return state
        count_K = self.decay * state["codes.count"] + (1 - self.decay) * sums["codes.count"]
        sum_KC = self.decay * state["codes.sum"] + (1 - self.decay) * sums["codes.sum"]
        dead_K = (count_K < self.revive_below) & (sums["revival.count"] == 1)
        count_K = torch.where(dead_K, self.revive_below, count_K)
        sum_KC = torch.where(dead_K[:, None], self.revive_below * sums["revival.sum"], sum_KC)
        counts = (count_K > _FEWEST) & (sums["codes.count"].sum() > 0)
        return {
            "codes.count": torch.where(counts, count_K, state["codes.count"]),
            "codes.sum": torch.where(counts[:, None], sum_KC, state["codes.sum"]),
        }

    def metrics(self, state: State) -> Mapping[str, Tensor]:
        """Perplexity of the averaged use of the codes, and the share of codes that are in use."""
        share_K = state["codes.count"] / state["codes.count"].sum()
        entropy = -(share_K * share_K.clamp_min(_FEWEST).log()).sum()
        in_use = (state["codes.count"] >= max(self.revive_below, _FEWEST)).double().mean()
        return {"perplexity": entropy.exp(), "codes_in_use": in_use}

    def _by_code(self, z_NC: Tensor, codes_N: Tensor) -> tuple[Tensor, Tensor]:
        """How many of the latents each code has, [K], and their sum [K, C]; codes beyond the last count for
        none."""
        count_K = z_NC.new_zeros(self.size + 1)
        sum_KC = z_NC.new_zeros(self.size + 1, z_NC.shape[1])
        codes_N = codes_N.clamp_max(self.size)
        count_K.index_add_(0, codes_N, torch.ones_like(z_NC[:, 0]))
        sum_KC.index_add_(0, codes_N, z_NC)
        return count_K[:-1], sum_KC[:-1]


@dataclass(frozen=True, slots=True)
class EmaVectors:
    """The codebook of a step, [K, C] float32. An object of its own, whose type no strategy changes on the way
    into the network."""

    vectors_KC: Tensor


class EmaQuantizer(Quantizer):
    """Nearest code in Euclidean distance. The network keeps the codebook that it was last trained with."""

    codebook: Tensor

    def __init__(self, config: EmaCodebook, channels: int) -> None:
        super().__init__()
        self._commitment = config.commitment
        self.register_buffer("codebook", config.codebook(config.state(channels)).vectors_KC.clone())

    @torch.no_grad()
    def use(self, codebook: Codebook) -> None:
        self.codebook.copy_(codebook.vectors_KC)

    def forward(self, z_BChw: Tensor) -> Quantized:
        """Codes, and commitment |z - e|^2 per row (van den Oord et al. 2017, eq. 3, without term 2)."""
        with torch.autocast(z_BChw.device.type, enabled=False):
            z_BChw = z_BChw.float()
            # Relative to the codebook's mean: far from zero, the squares would drown the differences.
            middle_C = self.codebook.mean(0)
            z_NC = z_BChw.detach().movedim(1, -1).flatten(0, -2) - middle_C
            codes_KC = self.codebook - middle_C
            codes_Bhw = (
                (codes_KC.square().sum(1) - 2 * z_NC @ codes_KC.T)
                .argmin(1)
                .view(z_BChw.shape[0], *z_BChw.shape[2:])
            )
        e_BChw = self.vectors(codes_Bhw)
        straight_BChw = z_BChw + (e_BChw - z_BChw).detach()
        to_latents_B = ((z_BChw - e_BChw) ** 2).flatten(1).mean(dim=1)
        return Quantized(straight_BChw, codes_Bhw, self._commitment * to_latents_B)

    def vectors(self, codes_Bhw: Tensor) -> Tensor:
        """The codes' vectors, [B, C, h, w]."""
        return F.embedding(codes_Bhw, self.codebook).movedim(-1, 1)


COMPONENT = EmaCodebook
