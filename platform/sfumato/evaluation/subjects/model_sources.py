"""A trained model as what is evaluated: it draws images, or reconstructs those of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch, Texts
from sfumato.core.conditions import LABEL, Source
from sfumato.core.family import HasLatent, HasLikelihood, KnowsOverfitting, Reconstructs, likelihood_of
from sfumato.core.rng import SampleRng
from sfumato.errors import CapabilityError, SfumatoError
from sfumato.evaluation.references.reference import Captioned, Reference
from sfumato.evaluation.statistics import Float64Array, Int64Array, UInt8Array
from sfumato.evaluation.store import digest
from sfumato.evaluation.subjects.conditions import given_by, of_block
from sfumato.evaluation.subjects.image_set import ImageBlock
from sfumato.evaluation.subjects.latents import Placed, Steps
from sfumato.evaluation.subjects.source import Drawn, Kind, SampleSource
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import to_uint8


def load_model(
    folder: Path,
    sampling: Mapping[str, Any],
    *,
    device: str,
    trust: bool,
    reference: Reference,
    base: Path | None = None,
) -> SampleSource:
    """A trained model by its capability: drawing images, or else reconstructing those of the reference.

    `device` is where the workers compute; a driver without a GPU still loads the model, on the CPU,
    to learn what it makes. `trust` permits a family by import path, which runs the code found there.
    `base` is the place of an adapter's base, None for its place in training.

    Raises CheckpointError for a bad folder, ConfigError for options that the family lacks, CapabilityError
    for a model that can do neither.
    """
    here = device if torch.cuda.is_available() else "cpu"
    generator = Generator.load(folder, here, trust=trust, base=base)
    draws = generator.config.samples(generator.data)
    if draws and sampling:
        generator = generator.with_options(generator.options(sampling))
    likelihood = isinstance(generator.family, HasLikelihood)
    if draws:
        kinds = {
            (False, False): GeneratorSource,
            (True, False): LikelihoodGenerator,
            (False, True): LatentGenerator,
            (True, True): LikelihoodLatentGenerator,
        }
        latent = isinstance(generator.family, HasLatent)
        return kinds[likelihood, latent](generator, sampling, device, reference)
    if not isinstance(generator.family, Reconstructs):
        raise CapabilityError(
            f"family {generator.config.family!r} can neither draw images nor reconstruct: nothing to evaluate"
        )
    reconstruct = LikelihoodReconstruction if likelihood else ReconstructionSource
    return reconstruct(generator, reference, device)


class GeneratorSource:
    """A trained model that draws."""

    kind: Kind = "samples"
    size: int | None = None

    def __init__(
        self, generator: Generator, sampling: Mapping[str, Any], device: str, reference: Reference
    ) -> None:
        """Conditions other than classes are those of the reference's images, in their order."""
        self._generator = generator
        self._given = given_by(reference, generator)
        self._options = generator.options(sampling)
        self.door = generator.door
        self.block = generator.block
        self.spec = generator.data
        self.conditional = LABEL in generator.conditions
        self.captioned = any(rows.kind == "text" for rows in self._given.values())
        self.model = generator.digest
        self.sampling: Mapping[str, Any] = self._options.model_dump(mode="json")
        options = self.sampling
        noise = generator.provenance.settings.noise
        more = [] if noise is None else [noise.model_dump(mode="json")]
        self.digest = digest(
            generator.digest, options, device, *([reference.digest] if self._given else []), *more
        )

    def draw(self, index: int, *, seed: int, labels_B: Int64Array | None) -> Drawn:
        """Samples; sample i depends only on (seed, i, its conditions)."""
        conditions = of_block(self._generator, self._given, index, labels_B)
        with _Passes(self._generator.nets.values()) as passes:
            images_BCHW = self._generator.sample_block(
                index * self.block, seed=seed, conditions=conditions, options=self._options
            )
        return Drawn(_as_bytes(images_BCHW, f"block {index}"), evaluations=passes.rows / self.block)

    @property
    def overfitting(self) -> float | None:
        """What the model's training says of it, if it does."""
        family = self._generator.family
        if not isinstance(family, KnowsOverfitting):
            return None
        return family.overfitting(self._generator.progress)

    def captions_of(self, index: int) -> list[str]:
        """Sample i is drawn for the caption of the reference's image i, starting over after the last."""
        name = next(name for name, rows in self._given.items() if rows.kind == "text")
        texts = of_block(self._generator, self._given, index, None)[name]
        assert isinstance(texts, Texts)
        return texts


class ReconstructionSource:
    """An autoencoder without a prior: measures how well it preserves the reference's images."""

    kind: Kind = "reconstructions"

    def __init__(self, generator: Generator, reference: Reference, device: str) -> None:
        self._generator = generator
        self._reference = reference
        self._given = given_by(reference, generator)
        self.door = generator.door
        self.block = generator.block
        self.spec = generator.data
        self.size: int | None = reference.size
        self.conditional = reference.spec.num_classes > 0
        self.captioned = isinstance(reference, Captioned) and reference.captioned
        self.digest = digest(generator.digest, "reconstructions", reference.digest, device)

    @torch.no_grad()
    def draw(self, index: int, *, seed: int, labels_B: Int64Array | None) -> Drawn:
        """Reconstructions of the reference's images `index * block` onwards, with the originals."""
        family = self._generator.family
        assert isinstance(family, Reconstructs)
        first = index * self.block
        real, label_B = self._reference.read(first, min(first + self.block, self._reference.size))
        batch, rng = _full_batch(self._generator, self._given, (real, label_B), index, seed)
        with _Passes(self._generator.nets.values()) as passes:
            made_BCHW = family.reconstruct(self._generator.nets, batch, self._generator.progress, rng)[
                : len(real)
            ]
        images = _as_bytes(made_BCHW, f"block {index}")
        return Drawn(images, label_B, real, passes.rows / self.block)

    def captions_of(self, index: int) -> list[str]:
        """Captions of the reconstructed images."""
        assert isinstance(self._reference, Captioned)
        first = index * self.block
        return self._reference.captions(first, min(first + self.block, self._reference.size))


class _Likelihood:
    """Bits per dimension of real images, for a source around a generator."""

    _generator: Generator
    _given: Source

    @property
    def likelihood_of(self) -> str:
        family = self._generator.family
        assert isinstance(family, HasLikelihood)
        return likelihood_of(family)

    @property
    def trained_on(self) -> str | None:
        return self._generator.trained_on

    @torch.no_grad()
    def bits(
        self, index: int, real: ImageBlock, *, seed: int, images: Reference | None = None
    ) -> Float64Array:
        """[n] float64; a bound's draws depend only on the seed and the image's position."""
        family = self._generator.family
        assert isinstance(family, HasLikelihood)
        given = self._given if images is None else given_by(images, self._generator)
        batch, rng = _full_batch(self._generator, given, real, index, seed)
        bits_B = family.bits_per_dim(self._generator.nets, batch, self._generator.progress, rng)[
            : len(real[0])
        ]
        found: Float64Array = bits_B.double().cpu().numpy()
        return found


class LikelihoodGenerator(_Likelihood, GeneratorSource):
    """A model that draws and has a likelihood."""


class LatentGenerator(Steps, Placed, GeneratorSource):
    """A model that draws from a latent vector."""


class LikelihoodLatentGenerator(Steps, Placed, LikelihoodGenerator):
    """A model that draws from a latent vector and has a likelihood."""


class LikelihoodReconstruction(_Likelihood, ReconstructionSource):
    """An autoencoder that reconstructs and has a likelihood."""


def _full_batch(
    generator: Generator, given: Source, real: ImageBlock, index: int, seed: int
) -> tuple[Batch, SampleRng]:
    """A batch of exactly `generator.block` rows, filled up by repeats: networks see only one shape."""
    images, label_B = real
    rows_B = np.minimum(np.arange(generator.block), len(images) - 1)
    device = next((p.device for net in generator.nets.values() for p in net.parameters()), None)
    image_BCHW = torch.from_numpy(images[rows_B]).permute(0, 3, 1, 2).to(device)
    batch: dict[str, Tensor] = {"image": image_BCHW.float().div(127.5).sub(1.0)}
    if label_B is not None:
        batch["label"] = torch.from_numpy(label_B[rows_B]).to(device)
    first = index * generator.block
    for condition in generator.conditions:
        if rows := given.get(condition.name):
            values = rows.read([(first + int(row)) % len(rows) for row in rows_B])
            batch[condition.column] = cast("Tensor", values.to(device))
    return batch, SampleRng(seed, range(first, first + generator.block))


def _as_bytes(images_BCHW: Tensor, what: str) -> UInt8Array:
    """uint8 [B, H, W, C]. Raises SfumatoError for NaN or infinity, which would become an innocent byte."""
    if not bool(torch.isfinite(images_BCHW).all()):
        raise SfumatoError(
            f"{what}: the model gave NaN or infinite pixels; look at its training curves, or name an "
            "earlier checkpoint"
        )
    return to_uint8(images_BCHW)


class _Passes:
    """Counts the rows that pass through networks inside the block: the cost of sampling."""

    def __init__(self, nets: Any) -> None:
        self._nets: Sequence[nn.Module] = list(nets)
        self.rows = 0

    def __enter__(self) -> _Passes:
        self._handles = [net.register_forward_pre_hook(self._count, with_kwargs=True) for net in self._nets]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _count(self, net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
        self.rows += len(tensors[0]) if tensors else 0
