"""The diffusion family: one network, its averages, one phase; the objective defines what it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.conditions import LABEL as LABELS
from sfumato.core.family import EmaOf, Frozen, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.first_stage import OpenStage
from sfumato.core.pretrained_model import PretrainedModel
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.stored import Weights
from sfumato.errors import ConfigError
from sfumato.families.diffusion.adapters import AdapterConfig, Look
from sfumato.families.diffusion.alignment import NAME as ENCODER
from sfumato.families.diffusion.alignment import Alignment, grid_of
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.drawing import DRAWN, drawing_of
from sfumato.families.diffusion.guide import NAME as GUIDE
from sfumato.families.diffusion.guide import Guide
from sfumato.families.diffusion.guiding import acts, guided, guided_by_inputs, without_image
from sfumato.families.diffusion.labels import (
    Conditioning,
    Given,
    GivenInputs,
    GivenTexts,
    Guided,
    LabelDropout,
)
from sfumato.families.diffusion.latent import NAME, LatentNetwork, LatentSpace, scaled
from sfumato.families.diffusion.networks import TextNetworkConfig
from sfumato.families.diffusion.objectives import BoundedObjective, GuidedSampling
from sfumato.families.diffusion.path import DiffusionPath
from sfumato.families.diffusion.preference import REFERENCE, REJECTED, preference_loss
from sfumato.families.diffusion.steering import LABEL
from sfumato.text.condition import DROPPED, TextCondition
from sfumato.text.config import TextConfig
from sfumato.text.network import TextConditioned


class DiffusionFamily:
    """A model of pixels. Implements `core.family.Family` and `ExportsDiffusers`."""

    samplers: Sequence[str] = ("ema",)
    _space: LatentSpace | None = None
    initialise: Callable[[Nets, Batch, Rng], None]
    """Of a model of latents, their scale; of an adapter, what follows from its base. Others have none."""

    def __init__(self, config: DiffusionConfig, data: DataSpec) -> None:
        self._config = config
        self._data = data
        self._conditional = LABELS in config.conditions(data)
        self._text = None if config.text is None else _texts(config.text, config.adapter)
        self._objective = config.objective.build(latents=config.first_stage is not None)
        self._labels = LabelDropout(
            data.num_classes if self._conditional else None, config.label_dropout(data)
        )
        names = () if config.adapter is None else config.adapter.names
        self._given: Conditioning = self._labels
        if self._text is not None:
            self._given = GivenTexts(self._text, names)
        elif names:
            self._given = GivenInputs(self._labels, names)
        self._alignment = (
            None if config.alignment is None else Alignment(config.alignment, grid_of(config.network, data))
        )
        self.nets: Mapping[str, NetSpec] = {
            "network": self._trainable(),
            **self._objective.nets(),
            "ema": EmaOf(source="network", decay=config.ema.decay),
        }
        if self._alignment is not None:
            self.nets = {ENCODER: self._alignment.frozen, **self.nets}
        if self._text is not None and self._text.frozen:
            self.nets = {**self._text.frozen, **self.nets}
            self.samplers = (*self.samplers, *self._text.frozen)
        options = config.sampling
        chosen = options.guide if isinstance(options, GuidedSampling) else None
        self._guide = None if chosen is None else Guide.open(chosen)
        if self._guide is not None:
            self.nets = {**self.nets, GUIDE: self._guide.frozen}
            self.samplers = (*self.samplers, GUIDE)
        self._drawing = drawing_of(config.adapter, self._text, config.optimizer, config.ema)
        if self._drawing is not None:
            self.nets = {**self.nets, **self._drawing.nets}
            self.samplers = (*self.samplers, *self._drawing.samplers)
        if config.preference is not None and config.pretrained is not None:
            before = Frozen(build=self._build_plain, weights=self._weights(config.pretrained, None))
            self.nets = {REFERENCE: before, **self.nets}
        if config.adapter is not None and config.pretrained is not None and config.adapter.begins:
            self.initialise = self._begin
        objective = self._objective
        self.phases: Sequence[Phase] = (
            *objective.further_phases(self._given),
            Phase(name=objective.phase, trains="network", loss=self._loss, float32=objective.float32),
            *(() if self._drawing is None else self._drawing.phases),
        )

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch, with the inputs of its texts and of an adapter if there are any: this model works on
        pixels."""
        return self._prepared(nets, batch, batch, rng)

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1], from noise of `rng`, by the averaged network.

        A conditional model without labels draws from its null class, that is, from all classes; one that was
        trained without it raises ConfigError.
        """
        return self._sample(nets, request, rng, clip=self._clip(request.options)).clamp(-1, 1)

    def path(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> DiffusionPath:
        """The path that edits enter; implements `core.paths.HasPath`."""
        device = next(nets["ema"].parameters()).device
        request = self._completed(nets, request, rng)
        return DiffusionPath(
            self._objective,
            self._guided(nets, request, rng.rows, device),
            nets,
            request.options,
            rng,
            self._data.shape,
            clip=self._space is None and self._clip(request.options),
            space=self._space,
        )

    def noise_shape(self, options: Any) -> tuple[int, ...]:
        """Of pixels or latents; implements `core.paths.BeginsInNoise`."""
        self._objective.noise_levels(options)
        if problem := options.adds_noise:
            raise ConfigError(problem)
        return self._data.shape

    def export_diffusers(self, nets: Nets, folder: str, options: Any) -> None:
        """Write a folder that `DiffusionPipeline.from_pretrained` loads; `export.py` has the exact line.

        Raises ConfigError for members of the family that diffusers has no pipeline for.
        """
        from sfumato.families.diffusion.export import write_pipeline  # loads diffusers' pipelines

        if self._config.adapter is not None and self._write_adapter(self._config.adapter, nets, Path(folder)):
            return
        if self._text is not None:
            self._export_texts(nets, folder, options)
            return
        objective, network = self._config.objective, self._config.network
        latent = self._config.first_stage is not None
        able = network.for_diffusers and not latent
        scheduler = self._objective.diffusers_scheduler(options, clip=self._clip(options)) if able else None
        if scheduler is None:
            raise ConfigError(
                f"diffusers has no pipeline for objective {objective.kind!r} with network {network.kind!r} "
                f"on {'latents' if latent else 'pixels'}, only for 'ddpm' with 'unet' on pixels; "
                "use --format safetensors"
            )
        write_pipeline(
            Path(folder),
            nets["ema"],
            scheduler,
            options,
            conditional=self._conditional,
        )

    def _write_adapter(self, adapter: AdapterConfig, nets: Nets, folder: Path) -> bool:
        """Write the adapter alone, in the form that diffusers loads onto its base, if it has one."""
        network = self._config.network
        kind = network.base_kind if isinstance(network, TextNetworkConfig) else network.kind
        files = adapter.files(nets["ema"], kind)
        if files is not None:
            files.write(folder, folder.name)
        return files is not None

    def _prepared(self, nets: Nets, batch: Batch, pixels: Batch, rng: Rng) -> Batch:
        """The batch with all that the network sees; `pixels` has the images where `batch` has latents."""
        found = batch if self._text is None else self._text.prepare(nets, batch, rng)
        if self._alignment is not None:
            found = {**found, **self._alignment.inputs(nets, pixels)}
        if self._config.preference is not None:
            other: Batch = {"image": pixels[self._config.preference.column]}
            there = other if self._space is None else self._space.encode(nets, other, rng)
            found = {**found, REJECTED: there["image"]}
        if self._config.adapter is None:
            return found
        dropped_B = found.get(DROPPED)
        look = Look(partial(self._seen, nets), self._data.shape, rng, dropped_B)
        return {**found, **self._config.adapter.inputs(pixels, look)}

    def _seen(self, nets: Nets, image_BCHW: Tensor) -> Tensor:
        """Images where the network works: themselves, or their mean latents."""
        return image_BCHW if self._space is None else self._space.mean(nets, {"image": image_BCHW})

    def _begin(self, nets: Nets, batch: Batch, rng: Rng) -> None:
        """What the adapter takes from the base's weights; implements `core.family.InitialisesFromData`."""
        assert self._config.adapter is not None, "assigned only then"
        self._config.adapter.begin(nets["network"])

    def _export_texts(self, nets: Nets, folder: str, options: Any) -> None:
        """Raises ConfigError: diffusers' pipelines of texts work on latents."""
        raise ConfigError(
            "diffusers' pipelines of texts work on latents, this model on pixels; use --format safetensors"
        )

    def _loss(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        def loss(nets: Nets, batch: Batch, rng: Rng) -> LossOut:
            def objective(nets: Nets) -> LossOut:
                return self._objective.loss(nets, batch, self._given, progress, rng)

            if self._alignment is None:
                return objective(nets)
            return self._alignment.loss(nets, batch, objective)

        if self._config.preference is None:
            return loss(nets, batch, rng)
        return preference_loss(self._config.preference, loss, nets, batch, rng)

    def _trainable(self) -> Trainable:
        """The network; with its pretrained weights and its adapter, if it has them."""
        source, adapter = self._config.pretrained, self._config.adapter
        return Trainable(
            build=self._build,
            optimizer=self._config.optimizer,
            weights=self._objective.weights() if source is None else self._weights(source, adapter),
            adapter=() if adapter is None or source is None else adapter.trained(),
        )

    def _weights(self, source: PretrainedModel, adapter: AdapterConfig | None) -> Weights | None:
        """Of a run all; of a folder of diffusers those of its network, which others are built around."""
        inside, fresh = ("", ()) if adapter is None else (adapter.inside, adapter.fresh())
        if source.source[0] == "run":
            found = source.weights(inside=inside, fresh=fresh)
        else:
            found = source.weights(
                into=".".join(self._around()),
                fresh=("latent_scale", "*.encoders.*", "encoders.*", *fresh),
                inside=inside,
            )
        if found is None or self._text is None or not self._text.stored:
            return found
        around = ".".join(["network"] * (self._space is not None) + ["encoders"])
        also = [
            replace(stored, into=f"{around}.{name}.{stored.into}".rstrip("."))
            for name, stored in self._text.stored.items()
        ]
        return replace(found, also=tuple(also), fresh=(*found.fresh, "*.tokenizer"))

    def _around(self) -> list[str]:
        """The names on the way from the network that trains to that of a library in it."""
        if self._text is None:
            return []
        network = self._config.network
        assert isinstance(network, TextNetworkConfig), "checked among the problems"
        return ["network", network.inner]

    def _build(self) -> nn.Module:
        network = self._build_plain()
        return network if self._config.adapter is None else self._config.adapter.added(network)

    def _build_plain(self) -> nn.Module:
        outputs = self._objective.outputs
        if self._text is not None:
            network = self._config.network
            assert isinstance(network, TextNetworkConfig), "checked among the problems"
            shape = self._text.config.shape()
            return self._text.wrap(network.build_for_text(self._data, shape, outputs=outputs))
        more: dict[str, Any] = {} if outputs == 1 else {"outputs": outputs}
        if self._objective.spans:
            more["spans"] = True  # networks of others need not know what they are not asked for
        if self._objective.uncertain:
            more["uncertain"] = True
        if self._alignment is not None:
            more["told"] = self._alignment.told
        return self._config.network.build(self._data, conditional=self._conditional, **more)

    def _sample(self, nets: Nets, request: SampleRequest, rng: SampleRng, *, clip: bool) -> Tensor:
        """Samples from noise in the space that the network works on, [N, C, H, W]."""
        device = next(nets["ema"].parameters()).device
        request = self._completed(nets, request, rng)
        guided = self._guided(nets, request, rng.rows, device)
        noise_NCHW = rng.beginning(*self._data.shape).to(device)
        return self._objective.sample(guided, noise_NCHW, request.options, rng, clip=clip)

    def _completed(self, nets: Nets, request: SampleRequest, rng: SampleRng) -> SampleRequest:
        """The request with what a prior or the model below draws, if there is one and nothing was given."""
        return request if self._drawing is None else self._drawing.completed(nets, request, rng)

    def _guided(self, nets: Nets, request: SampleRequest, rows: int, device: torch.device) -> Guided:
        """The averaged network with the labels or texts of the request, guided as its options say."""
        if self._text is not None:
            return self._guided_by_texts(self._text, nets, request, rows, device)
        label_N, options = self._labels_of(request, rows, device), request.options
        if self._config.adapter is not None and self._config.adapter.names:
            asked = self._asked(self._config.adapter, nets, request, device)
            null = self._data.num_classes
            return guided_by_inputs(nets["ema"], self._config.adapter, asked, label_N, null, options)
        plain = Guided(nets["ema"], label_N, 1.0, self._data.num_classes)
        if not isinstance(options, GuidedSampling):
            return plain
        if options.guide is None:
            return plain if request.tensor("label") is None else guided(plain, options)
        if self._guide is None:
            raise ConfigError("guide: this model was opened without one; open it with these options")
        return replace(
            guided(plain, options), worse=partial(self._guide.output, nets[GUIDE], labels_N=label_N)
        )

    def _guided_by_texts(
        self, text: TextCondition, nets: Nets, request: SampleRequest, rows: int, device: torch.device
    ) -> Guided:
        """Away from the negative text, which is the empty one where none is given."""
        network, options = _of_texts(nets["ema"]), request.options
        adapter = self._config.adapter
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
        rows = {each.column: request.tensor(each.name) for each in adapter.conditions(self._data)}
        there = {name: value.to(device) for name, value in rows.items() if value is not None}
        noise = self._drawing.noise if self._drawing is not None and DRAWN in request.conditions else 0.0
        return adapter.inputs(there, Look(partial(self._seen, nets), self._data.shape, noise=noise))

    def _labels_of(self, request: SampleRequest, rows: int, device: torch.device) -> Tensor | None:
        """The class of each sample [N]; the null class if none was given."""
        if not self._conditional:
            return None
        label_N = request.tensor("label")
        if label_N is not None:
            return label_N.to(device)
        if not self._labels.probability:
            raise ConfigError(
                f"labels: required; this {self._config.objective.kind} model was trained without "
                "dropping labels, so it knows no null class"
            )
        return torch.full((rows,), self._data.num_classes, device=device)

    def _clip(self, options: Any) -> bool:
        return True if options.clip is None else bool(options.clip)


class BoundedDiffusionFamily(DiffusionFamily):
    """A model of pixels with a likelihood or a bound on it; implements `core.family.HasLikelihood`."""

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """A bound on the bits per dimension of 8-bit images, given their labels if there are any, [B]."""
        objective = self._objective
        assert isinstance(objective, BoundedObjective), "its sampling asks for a likelihood"
        given: Given | None = batch["label"] if self._conditional else None
        adapter, look = self._config.adapter, Look(partial(self._seen, nets), self._data.shape)
        shown = {} if adapter is None else adapter.inputs(batch, look)
        if self._text is not None:
            inputs = self._text.inputs(nets, list(batch[self._text.config.column]), batch["image"].device)
            given = {**_of_texts(nets["ema"]).encoded(inputs), **shown}
        elif shown:
            given = {**shown, **({} if given is None else {LABEL: batch["label"]})}
        network = Guided(nets["ema"], given, 1.0, self._data.num_classes)
        return objective.bits_per_dim(network, batch["image"], self._config.sampling, rng)


class LatentDiffusionFamily(DiffusionFamily):
    """The same on the latents of a first stage, `data` of which are the images that it encodes."""

    samplers: Sequence[str] = ("ema", NAME)

    def __init__(self, config: DiffusionConfig, data: DataSpec, stage: OpenStage) -> None:
        self._space: LatentSpace = LatentSpace(stage, config.latent_scale, data)
        super().__init__(config, self._space.data)
        self.nets = {NAME: self._space.frozen(), **self.nets}
        if config.pretrained is None:
            self.initialise = self._space.measure

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch with its images replaced by a draw of their scaled latents."""
        return self._prepared(nets, self._space.encode(nets, batch, rng), batch, rng)

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]: latents as of a model of pixels, decoded."""
        x_NChw = self._sample(nets, request, rng, clip=False)
        return self._space.decode(nets, x_NChw).clamp(-1, 1)

    def _export_texts(self, nets: Nets, folder: str, options: Any) -> None:
        from sfumato.families.diffusion.export_text import text_pipeline

        assert self._text is not None
        flow, scheduler = self._objective.diffusers_flow(options), None
        if flow is None:
            scheduler = self._objective.diffusers_scheduler(options, clip=False)
        network, config = _of_texts(nets["ema"]), self._config.network
        assert isinstance(config, TextNetworkConfig)
        scale = float(scaled(nets["ema"]).latent_scale)
        stages = (nets[NAME], scale)
        pipeline = text_pipeline(config, network, nets, self._text, stages, scheduler, flow, options)
        if self._config.adapter is not None:
            pipeline = self._config.adapter.in_pipeline(pipeline)
        pipeline.save_pretrained(folder)

    def _around(self) -> list[str]:
        return ["network", *super()._around()]

    def _build_plain(self) -> nn.Module:
        return self._space.wrap(super()._build_plain())


def plain_network(config: DiffusionConfig, data: DataSpec) -> nn.Module:
    """The network without its adapter, on the meta device."""
    adapter = config.adapter
    if adapter is None or not adapter.reaches_encoders:  # else its encoders are a part of the network
        config = config.model_copy(update={"adapter": None})
    family = config.build(data)
    assert isinstance(family, DiffusionFamily)
    with torch.device("meta"):
        return family._build_plain()


def _texts(text: TextConfig, adapter: AdapterConfig | None) -> TextCondition:
    """With the encoders inside of the network where the adapter reaches them."""
    if adapter is None:
        return TextCondition(text)
    return TextCondition(text, inside=adapter.reaches_encoders, new_word=adapter.new_word())


def _of_texts(network: nn.Module) -> TextConditioned:
    """The part of the network that holds its text encoders."""
    inner = network.network if isinstance(network, LatentNetwork) else network
    assert isinstance(inner, TextConditioned), "built by TextCondition.wrap"
    return inner
