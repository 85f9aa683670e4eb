"""Diffusion models of pixels with a likelihood, or a bound on it."""

from __future__ import annotations

from torch import Tensor

from sfumato.core.batch import Batch
from sfumato.core.family import Nets
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.families.diffusion.adapting.steering import LABEL
from sfumato.families.diffusion.backbone import of_texts
from sfumato.families.diffusion.family import DiffusionFamily
from sfumato.families.diffusion.guidance.labels import Given, Guided
from sfumato.families.diffusion.objectives import BoundedObjective


class BoundedDiffusionFamily(DiffusionFamily):
    """A model of pixels with a likelihood or a bound on it; implements `core.family.HasLikelihood`."""

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """A bound on the bits per dimension of 8-bit images, given their labels if there are any, [B]."""
        parts = self._parts
        objective, adapter, text = parts.objective, parts.config.adapter, parts.text
        assert isinstance(objective, BoundedObjective), "its sampling asks for a likelihood"
        given: Given | None = batch["label"] if parts.conditional else None
        shown = {} if adapter is None else adapter.inputs(batch, parts.look(nets))
        if text is not None:
            inputs = text.inputs(nets, list(batch[text.config.column]), batch["image"].device)
            given = {**of_texts(nets["ema"]).encoded(inputs), **shown}
        elif shown:
            given = {**shown, **({} if given is None else {LABEL: batch["label"]})}
        network = Guided(nets["ema"], given, 1.0, parts.data.num_classes)
        return objective.bits_per_dim(network, batch["image"], parts.config.sampling, rng)
