"""The averaged network as a request conditions and guides it: away from no text, no class, or no image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.family import Frozen, Nets, SampleRequest
from sfumato.errors import ConfigError
from sfumato.families.diffusion.adapters import AdapterConfig
from sfumato.families.diffusion.adapting.steering import LABEL
from sfumato.families.diffusion.backbone import of_texts
from sfumato.families.diffusion.drawing import DRAWN
from sfumato.families.diffusion.guidance.autoguidance import NAME as GUIDE
from sfumato.families.diffusion.guidance.autoguidance import Guide
from sfumato.families.diffusion.guidance.labels import Guided
from sfumato.families.diffusion.objectives import GuidedSampling, SamplingBase
from sfumato.families.diffusion.parts import Parts
from sfumato.text.condition import TextCondition


class Guiding:
    """Conditions and guides the network of one model; `nets` has the guide of autoguidance, if it has one.

    `noise_drawn` is the standard deviation of the noise in a condition that was drawn (`drawing.Drawing`).
    """

    def __init__(self, parts: Parts, noise_drawn: float) -> None:
        self._parts, self._noise_drawn = parts, noise_drawn
        options = parts.config.sampling
        chosen = options.guide if isinstance(options, GuidedSampling) else None
        self._guide = None if chosen is None else Guide.open(chosen)
        self.nets: Mapping[str, Frozen] = {} if self._guide is None else {GUIDE: self._guide.frozen}

    def guided(self, nets: Nets, request: SampleRequest, rows: int) -> Guided:
        """The averaged network with the labels or texts of the request, guided as its options say."""
        device = next(nets["ema"].parameters()).device
        check_scale(self._parts.config.adapter, request.options)
        if self._parts.text is not None:
            return self._by_texts(self._parts.text, nets, request, rows, device)
        label_N, options = self._labels(request, rows, device), request.options
        adapter, null = self._parts.config.adapter, self._parts.data.num_classes
        if adapter is not None and adapter.names:
            asked = self._asked(adapter, nets, request, device)
            return guided_by_inputs(nets["ema"], adapter, asked, label_N, null, options)
        plain = Guided(nets["ema"], label_N, 1.0, null)
        if not isinstance(options, GuidedSampling):
            return plain
        if options.guide is None:
            return plain if request.tensor("label") is None else guided(plain, options)
        if self._guide is None:
            raise ConfigError("guide: this model was opened without one; open it with these options")
        worse = partial(self._guide.output, nets[GUIDE], labels_N=label_N)
        return replace(guided(plain, options), worse=worse)

    def _by_texts(
        self, text: TextCondition, nets: Nets, request: SampleRequest, rows: int, device: torch.device
    ) -> Guided:
        """Away from the negative text, which is the empty one where none is given."""
        network, options = of_texts(nets["ema"]), request.options
        adapter = self._parts.config.adapter
        asked = {} if adapter is None else self._asked(adapter, nets, request, device)

        def encoded(texts: Sequence[str]) -> Mapping[str, Tensor]:
            return {**network.encoded(text.inputs(nets, texts, device)), **asked}

        texts, away = text.asked(request, rows, 2.0 if acts(options) else 1.0)
        if not away:
            return Guided(nets["ema"], encoded(texts), 1.0, {})
        null = encoded(away)
        nothing = without_image(adapter, null, options)
        return guided(Guided(nets["ema"], encoded(texts), 1.0, null, nothing=nothing), options)

    def _asked(
        self, adapter: AdapterConfig, nets: Nets, request: SampleRequest, device: torch.device
    ) -> dict[str, Tensor]:
        """What the adapter takes of a request, by its columns."""
        rows = {each.column: request.tensor(each.name) for each in adapter.conditions(self._parts.data)}
        there = {name: value.to(device) for name, value in rows.items() if value is not None}
        noise = self._noise_drawn if DRAWN in request.conditions else 0.0
        scale = request.options.adapter_scale
        return adapter.inputs(there, self._parts.look(nets, noise=noise, scale=scale))

    def _labels(self, request: SampleRequest, rows: int, device: torch.device) -> Tensor | None:
        """The class of each sample [N]; the null class if none was given."""
        if not self._parts.conditional:
            return None
        label_N = request.tensor("label")
        if label_N is not None:
            return label_N.to(device)
        if not self._parts.labels.probability:
            raise ConfigError(
                f"labels: required; this {self._parts.config.objective.kind} model was trained without "
                "dropping labels, so it knows no null class"
            )
        return torch.full((rows,), self._parts.data.num_classes, device=device)


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


def check_scale(adapter: AdapterConfig | None, options: SamplingBase) -> None:
    """Raises ConfigError where the options scale an adapter that cannot be."""
    if options.adapter_scale != 1 and (adapter is None or not adapter.scaled):
        what = "this model has no adapter" if adapter is None else f"{adapter.kind} has no scale"
        raise ConfigError(f"adapter_scale: {what}, so it has no effect; leave it out")


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
