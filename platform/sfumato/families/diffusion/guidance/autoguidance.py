"""Autoguidance's other network: a smaller or less trained model of the same data (Karras et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.family import Frozen
from sfumato.core.pretrained import Pretrained, card_config
from sfumato.families import config_class
from sfumato.families.diffusion.guidance.agreement import disagreements
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.objectives import Model

NAME = "guide"
"""Of the frozen network among the family's networks."""
FIELD = "model.sampling.guide"


@dataclass(frozen=True, slots=True)
class Guide:
    """The network, ready to be built, and whether it takes classes."""

    frozen: Frozen
    conditional: bool

    @classmethod
    def open(cls, guide: Pretrained) -> Guide:
        """Raises ConfigError if it has not been looked up."""
        opened = guide.open(config_class)
        assert guide.model is not None, "opened"
        takes = card_config(guide.model, config_class, FIELD).conditions(opened.data)
        return cls(Frozen(build=opened.build, weights=opened.weights), bool(takes))

    def output(self, network: nn.Module, x_NCHW: Tensor, t: Tensor, labels_N: Tensor | None) -> Tensor:
        """Its output [N, C, H, W], for the model's own labels."""
        return predict(network, x_NCHW, t, labels_N if self.conditional else None)


def guide_problems(guide: Pretrained, own: Model, data: DataSpec) -> list[str]:
    """The first reason why it cannot guide a model of `own` configuration; none before it is looked up."""
    return list(islice(disagreements(guide, FIELD, "guide", own, data, in_units=True), 1))
