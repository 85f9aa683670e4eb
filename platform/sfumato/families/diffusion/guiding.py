"""A network as the options of a request guide it: away from no text, no class, or no image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.families.diffusion.adapters import AdapterConfig
from sfumato.families.diffusion.labels import Guided
from sfumato.families.diffusion.objectives import GuidedSampling
from sfumato.families.diffusion.steering import LABEL


def guided(plain: Guided, options: GuidedSampling) -> Guided:
    """With the guidance of the options."""
    return replace(
        plain,
        weight=options.guidance,
        image=options.image_guidance,
        interval=options.guidance_interval,
        rescale=options.guidance_rescale,
    )


def acts(options: Any) -> bool:
    """Whether the options guide at all."""
    return isinstance(options, GuidedSampling) and (options.guidance, options.image_guidance) != (1, 1)


def without_image(
    adapter: AdapterConfig | None, null: Mapping[str, Tensor], options: Any
) -> Mapping[str, Tensor] | None:
    """The inputs of neither text nor image, where image guidance leads away from them; else None.

    Raises ConfigError for a model that knows no images of none.
    """
    if options.image_guidance == 1:
        return None
    if adapter is None or not adapter.droppable:
        raise ConfigError(
            "image_guidance: this model never saw its condition left out; train one with "
            "model.adapter.dropout above 0, or leave image_guidance out"
        )
    return adapter.without(null)


def guided_by_inputs(
    network: nn.Module,
    adapter: AdapterConfig,
    inputs: Mapping[str, Tensor],
    label_N: Tensor | None,
    null_class: int,
    options: Any,
) -> Guided:
    """A network without texts, with what an adapter shows it and its labels, if it has any."""
    given = {**inputs, **({} if label_N is None else {LABEL: label_N})}
    plain = Guided(network, given, 1.0, given)
    if not acts(options):
        return plain
    if label_N is not None:
        null = {**given, LABEL: torch.full_like(label_N, null_class)}
        nothing = without_image(adapter, null, options)
        return guided(replace(plain, null=null, nothing=nothing), options)
    nothing = without_image(adapter, given, options)
    if nothing is None:
        return plain
    return replace(
        plain,
        weight=options.image_guidance,
        null=nothing,
        interval=options.guidance_interval,
        rescale=options.guidance_rescale,
    )
