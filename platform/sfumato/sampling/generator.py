"""Draws images from a trained model: the same request gives the same bytes.

Sample i depends only on the seed, on i and on its conditions. Two things ensure this:

- its noise comes from its own generator, seeded by (seed, i) (`core.rng.SampleRng`), on the CPU
  whatever device the network runs on;
- the network always runs on *blocks* of the same number of rows. A matrix product of another shape may
  round differently, so the number of rows must not depend on how many samples are requested: sample i
  always sits in row i % block of block i // block, and the last block is filled up and cut.

So any process may draw any blocks, in any order. Only the machine's arithmetic remains:
another processor, number of torch threads or library version may change the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition, Conditions, Source, conditions_of
from sfumato.core.config import Config
from sfumato.core.family import EmaOf, Family, FamilyConfig, Frozen, Nets, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, seeded
from sfumato.core.state import initial
from sfumato.core.stored import Weights as Base
from sfumato.core.stored import matches
from sfumato.errors import CheckpointError, ConfigError
from sfumato.provenance.door import Door, refused
from sfumato.provenance.formats import SUFFIXES, Format
from sfumato.provenance.stored import Provenance
from sfumato.sampling.conditions import Labels, Takes
from sfumato.sampling.grid import to_pil
from sfumato.sampling.marked_noise import shape_of
from sfumato.sampling.model_folder import Weights, read_model_folder
from sfumato.sampling.options import apply_options, together
from sfumato.sampling.pixels import Images, to_uint8
from sfumato.sampling.pretrained_files import cast_parameters, load_stored, moved

BLOCK_ROWS = 64
BLOCK_VALUES = 2**20


def block_rows(data: DataSpec) -> int:
    """Rows of a block: 64, fewer for large images (a power of two, at most 2^20 values in all)."""
    values = data.channels * data.height * data.width
    fits = max(1, BLOCK_VALUES // values)
    return int(min(BLOCK_ROWS, 1 << (fits.bit_length() - 1)))


class Generator:
    """A model that samples.

    Attributes:
        config: the family's configuration.
        data: what the images are; `data.classes` names the labels.
        name: of the recipe that trained it.
        progress: how far it was trained.
        digest: sha256 that identifies the stored model; empty for one that was never stored.
        trained_on: digest of the data that it was trained on, if that is known.
        provenance: how its pictures are marked when they leave.
        door: the one way by which they leave, with these marks.
        block: rows that the network runs on at once.
    """

    def __init__(
        self,
        config: FamilyConfig,
        data: DataSpec,
        nets: Nets,
        *,
        name: str = "",
        progress: Progress | None = None,
        digest: str = "",
        trained_on: str | None = None,
        provenance: Provenance | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.config = config
        self.data = data
        self.name = name
        self.progress = progress or replace(Progress.at(0), state=initial(config.build(data)))
        state = {key: value.to(device) for key, value in self.progress.state.items()}
        self.progress = replace(self.progress, state=state)
        self.digest = digest
        self.trained_on = trained_on
        self.provenance = provenance or Provenance()
        self.door = Door.of(self.provenance, name, digest)
        self.block = block_rows(data)
        self.family: Family = config.build(data)
        self.device = device
        self.nets = {key: nets[key].to(device).eval() for key in self.family.samplers}

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        trust: bool = False,
        base: str | os.PathLike[str] | None = None,
    ) -> Self:
        """The model in a folder that `save_model_folder` wrote.

        `base` is the place of an adapter's base, if it is no longer where the folder names it; its digest
        must be the same.

        Raises CheckpointError or ConfigError, each one line.
        """
        stored = read_model_folder(folder, trust=trust)
        family = stored.config.build(stored.data)
        if missing := [name for name in family.samplers if name not in stored.weights]:
            raise CheckpointError(f"{folder} has no weights for network {missing[0]!r}; export it again")
        try:
            nets = build_nets(family, stored.weights, _found(stored.bases, base, folder))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder}: the weights do not match its configuration: {reason}") from None
        return cls(
            stored.config,
            stored.data,
            nets,
            name=stored.name,
            progress=stored.progress,
            digest=stored.digest,
            trained_on=stored.trained_on,
            provenance=stored.provenance,
            device=device,
        )

    @property
    def images(self) -> int:
        """How many training images it has seen."""
        return self.progress.images

    def with_options(self, options: Config) -> Self:
        """The model as if stored with these sampling options, which may decide what its family can do.

        A network that they add is read from the place that they record.
        """
        config = self.config.model_copy(update={"sampling": options})
        family = config.build(self.data)
        added = {name: _stored(family, name) for name in family.samplers if name not in self.nets}
        return type(self)(
            config,
            self.data,
            {**self.nets, **added},
            name=self.name,
            progress=self.progress,
            digest=self.digest,
            trained_on=self.trained_on,
            provenance=self.provenance,
            device=self.device,
        )

    def options(self, overrides: Mapping[str, Any] | None = None) -> Config:
        """The model's sampling defaults with changes. Raises ConfigError for an unknown option."""
        return apply_options(self.config, self.data, overrides or {})

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions that the model takes."""
        return self.config.conditions(self.data)

    @property
    def takes(self) -> Takes:
        """The same, with everything needed to interpret a user's values."""
        return Takes(self.conditions, self.data, self.config.family)

    def conditions_of(self, source: Source, rows: Sequence[int]) -> Conditions:
        """The conditions of samples `rows`. Raises ConfigError for unknown or missing conditions."""
        return conditions_of(source, rows, self.conditions, self.data)

    @torch.no_grad()
    def sample_block(self, first_index: int, *, seed: int, conditions: Conditions, options: Config) -> Tensor:
        """Samples `first_index` to `first_index + block - 1`: [block, C, H, W] float32 in [-1, 1].

        `first_index` is a multiple of `block`; `conditions` have `block` rows.
        """
        if first_index % self.block:
            raise ValueError(f"first_index must be a multiple of {self.block}, got {first_index}")
        request = SampleRequest(num=self.block, conditions=conditions, options=options)
        shape = shape_of(self.provenance.settings, self.family, options)
        rng = SampleRng(seed, range(first_index, first_index + self.block), shape=shape)
        return self.family.sample(self.nets, request, self.progress, rng)

    def batches(
        self,
        num: int,
        *,
        seed: int = 0,
        labels: Labels | None = None,
        prompts: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        options: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Images]:
        """Samples 0 to `num` - 1 as consecutive uint8 arrays [n, H, W, C].

        `batch_size` is rounded up to whole blocks; it bounds the memory and changes no byte. Arguments
        are checked at once, images are drawn on request.
        """
        for what, value in (("num", num), ("batch_size", self.block if batch_size is None else batch_size)):
            if value < 1:
                raise ConfigError(f"{what}: must be at least 1, got {value}")
        rows = -(-(batch_size or self.block) // self.block) * self.block
        source = self.takes.source(labels=labels, prompts=prompts, negative=negative, conditions=conditions)
        named = {"guidance": guidance, "sampler": sampler, "steps": steps}
        chosen = self.options(together(named, options or {}))
        shape_of(self.provenance.settings, self.family, chosen)  # refused here, not at the first image
        return self._draw(num, rows, seed, source, chosen)

    def sample(
        self,
        num: int,
        *,
        seed: int = 0,
        labels: Labels | None = None,
        prompts: str | Sequence[str] | None = None,
        negative: str | Sequence[str] | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        options: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Images:
        """Samples 0 to `num` - 1 as uint8 [num, H, W, C].

        Args:
            num: how many.
            seed: of all randomness.
            labels: classes by number or name: one, or several used in rotation; None draws all in turn.
            prompts: for a model that takes texts: one, or several used in rotation.
            negative: texts to guide away from: one, or several used in rotation.
            conditions: any condition of the model by name, a row or several used in rotation: texts, labels,
                images (uint8 [N, H, W, C], float32 [N, C, H, W] in [-1, 1], or paths), arrays [N, ...].
            guidance: the family's sampling option of this name; likewise `sampler` and `steps`.
            options: further changes of the model's sampling defaults, such as `{"order": 3}`.
            batch_size: samples in memory at once, rounded up to whole blocks.
            progress: called with (drawn, num) after each batch.

        Raises:
            ConfigError: an argument that the model does not take, or a value that it cannot.
        """
        drawn: list[Images] = []
        for images in self.batches(
            num,
            seed=seed,
            labels=labels,
            prompts=prompts,
            negative=negative,
            conditions=conditions,
            guidance=guidance,
            sampler=sampler,
            steps=steps,
            options=options,
            batch_size=batch_size,
        ):
            drawn.append(images)
            if progress is not None:
                progress(sum(map(len, drawn)), num)
        return np.concatenate(drawn)

    def save(
        self, images_NHWC: Images, folder: str | os.PathLike[str], *, kind: Format = "png"
    ) -> list[Path]:
        """Write images of this model, uint8 [N, H, W, C], to `000000.png` and so on in `folder`, by its door.

        Returns the files; images that the filter refuses have none.

        Raises ConfigError: the folder already holds one of the files, or a mark that the model requires
        cannot be set.
        """
        place = Path(folder)
        self.door.check(*images_NHWC.shape[1:3])
        files = [place / f"{index:06d}{SUFFIXES[kind]}" for index in range(len(images_NHWC))]
        if taken := [file for file in files if file.exists()]:
            raise ConfigError(f"{taken[0]} exists; choose another folder")
        place.mkdir(parents=True, exist_ok=True)
        marked, applied = self.door.pixels(images_NHWC)
        written = [
            (file, image)
            for file, image, marks in zip(files, marked, applied, strict=True)
            if not refused(marks)
        ]
        for file, image in written:
            self.door.write(file, to_pil(image), kind=kind)
        return [file for file, _ in written]

    def _draw(self, num: int, rows: int, seed: int, source: Source, options: Config) -> Iterator[Images]:
        for start in range(0, num, rows):
            stop = min(start + rows, num)
            blocks = [
                self.sample_block(
                    first,
                    seed=seed,
                    conditions=self.conditions_of(source, range(first, first + self.block)),
                    options=options,
                )
                for first in range(start, stop, self.block)
            ]
            yield to_uint8(torch.cat(blocks)[: stop - start])


def _found(
    bases: Mapping[str, Base], place: str | os.PathLike[str] | None, folder: str | os.PathLike[str]
) -> Mapping[str, Base]:
    """The bases, at the place named by the user."""
    if place is None:
        return bases
    known = sorted({base.place for base in bases.values()})
    if len(known) != 1:
        has = f"bases at {' and '.join(known)}" if known else "no adapter in it, so it needs no base"
        raise ConfigError(f"base: {folder} has {has}; leave it out")
    return {net: moved(base, str(Path(place).resolve())) for net, base in bases.items()}


def build_nets(
    family: Family, weights: Weights, bases: Mapping[str, Base] | None = None
) -> dict[str, nn.Module]:
    """The networks that sampling needs, with these weights; `bases` are those of adapters among them.

    Raises RuntimeError for weights that do not fit, CheckpointError for a base that is missing or different.
    """
    nets: dict[str, nn.Module] = {}
    for name in family.samplers:
        spec = family.nets[name]
        source = family.nets[spec.source] if isinstance(spec, EmaOf) else spec
        assert not isinstance(source, EmaOf), "an average of an average"
        with seeded("build", name):  # the first weights are replaced, and the caller's random state is kept
            nets[name] = source.build()
        _load(nets[name], weights[name], source, (bases or {}).get(name))
    return nets


def _stored(family: Family, name: str) -> nn.Module:
    """A frozen network with its stored weights. Raises CheckpointError if they are missing or different."""
    spec = family.nets[name]
    assert isinstance(spec, Frozen), "options add no network that is trained"
    with seeded("build", name):
        module = spec.build()
    if spec.weights is not None:
        load_stored(module, spec.weights)
    cast_parameters(module, spec.dtype)
    return module


def _load(
    module: nn.Module, state: Mapping[str, Tensor], spec: Trainable | Frozen, base: Base | None
) -> None:
    """All weights of a network, in place; with `base`, `state` has those of its adapter."""
    if base is not None and isinstance(spec, Trainable):
        load_stored(module, base, spec.adapter)
        whole = {key: value for key, value in module.state_dict().items() if not matches(key, spec.adapter)}
        state = {**whole, **state}
    module.load_state_dict(dict(state))
    if isinstance(spec, Frozen):
        cast_parameters(module, spec.dtype)
