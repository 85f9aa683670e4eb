"""Elastic weight consolidation against forgetting (Kirkpatrick et al. 2017; for GANs Seff et al. 2017).

While a model is trained on some classes alone (`data.curriculum`), it forgets the others. Here its weights
are held where the end of a stage left them, each as firmly as the task of that stage needs it:

    L' = L + weight / 2 sum_i F_i (theta_i - theta*_i)^2,   F_i = E (dL / dtheta_i)^2          eq. 3; 2, 4

theta* is the generator at the end of the stage, the network that `replay.py` keeps too. F is the diagonal of
the Fisher information with the generator's loss in the place of a log-likelihood, a mean over a `share` of
single images in the last `images` of a stage; those of several stages add up (Huszár 2018). It is a state of
the family. The gradient of a single image costs a backward pass of its micro-batch, in that window alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sfumato.core.config import Config
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.state import State

_FISHER, _SQUARES, _ROWS = "consolidation.fisher.", "consolidation.squares.", "consolidation.rows"


class ConsolidationConfig(Config):
    """How firmly weights are held, and from when on."""

    weight: float = Field(10.0, gt=0, description="Factor of the penalty on moving weights.")
    stages: tuple[int, ...] = Field(
        min_length=1,
        description="Training images at which the weights are held: the ends of stages of data.curriculum.",
    )
    images: int = Field(
        2_048, ge=1, description="Images at the end of a stage that the Fisher information is measured on."
    )
    share: float = Field(
        0.25, gt=0, le=1, description="The probability that one of them counts; each costs a backward pass."
    )

    @model_validator(mode="after")
    def _in_order(self) -> ConsolidationConfig:
        if sorted(set(self.stages)) != list(self.stages) or self.stages[0] < 1:
            raise ValueError(f"stages are numbers of images, in their order, got {list(self.stages)}")
        return self

    def ends(self, progress: Progress) -> bool:
        """Whether the step that ended at `progress` reached the end of a stage."""
        return any(progress.images - progress.batch < end <= progress.images for end in self.stages)

    def decay(self, progress: Progress) -> float:
        """Of the kept weights, after a step."""
        return 0.0 if self.ends(progress) else 1.0

    def measures(self, progress: Progress) -> bool:
        """Whether a step that starts at `progress` counts for the Fisher information."""
        return any(end - self.images <= progress.images < end for end in self.stages)

    def holds(self, progress: Progress) -> bool:
        """Whether there are weights to hold to."""
        return progress.images >= self.stages[0]


class Consolidation:
    """The penalty, and the Fisher information that it is weighed by."""

    def __init__(self, config: ConsolidationConfig) -> None:
        self._config = config

    def first(self, generator: nn.Module) -> dict[str, Tensor]:
        """Nothing is held."""
        found = {_ROWS: torch.zeros((), dtype=torch.float64)}
        for at, parameter in enumerate(generator.parameters()):
            for name in (_FISHER, _SQUARES):
                found[f"{name}{at}"] = torch.zeros(parameter.shape, dtype=torch.float32)
        return found

    def sums(self, generator: nn.Module, loss_B: Tensor, progress: Progress, rng: Rng) -> dict[str, Tensor]:
        """Squared gradients of the loss of each row that counts, summed over the rows, inside of a window."""
        if not self._config.measures(progress):
            return {}
        loss_B = loss_B[rng.uniform() < self._config.share]
        parameters = list(generator.parameters())
        found = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        for loss in loss_B:
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            for total, gradient in zip(found, gradients, strict=True):
                total += gradient.double().square()
        rows = torch.tensor(float(len(loss_B)), dtype=torch.float64, device=loss_B.device)
        return {_ROWS: rows, **{f"{_SQUARES}{at}": total for at, total in enumerate(found)}}

    def advance(self, state: State, sums: State, progress: Progress) -> dict[str, Tensor]:
        """The sums after a step; at the end of a stage their mean is added to the information."""
        ends = self._config.ends(progress)
        rows = state[_ROWS] + sums.get(_ROWS, 0.0)
        found = {_ROWS: torch.zeros_like(rows) if ends else rows}
        for name, fisher in state.items():
            if not name.startswith(_FISHER):
                continue
            own = f"{_SQUARES}{name.removeprefix(_FISHER)}"
            squares = state[own] + sums.get(own, 0.0)
            gained = squares / rows.clamp_min(1) if ends else 0.0
            found[name] = (fisher + gained).float()
            found[own] = (torch.zeros_like(squares) if ends else squares).float()
        return found

    def penalty(self, generator: nn.Module, kept: nn.Module, progress: Progress) -> Tensor | None:
        """A scalar; None before the end of the first stage."""
        if not self._config.holds(progress):
            return None
        pairs: Sequence[tuple[Tensor, Tensor]] = list(
            zip(generator.parameters(), kept.parameters(), strict=True)
        )
        terms = [
            (progress.state[f"{_FISHER}{at}"] * (here.float() - there.detach().float()).square()).sum()
            for at, (here, there) in enumerate(pairs)
        ]
        return self._config.weight / 2 * torch.stack(terms).sum()
