"""Stage `precompute`: a frozen encoder over a data set."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from sfumato.core.first_stage import CODES, LATENT_MEAN, FirstStageConfig
from sfumato.data.format.manifest import Manifest
from sfumato.errors import ConfigError, DataError
from sfumato.recipe import Recipe
from sfumato.runtime.cluster.use import Actors, Use
from sfumato.runtime.commands import precompute as encoding
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.schedule import Demand
from sfumato.runtime.pipeline.stage import Outputs, StageSettings, Work
from sfumato.runtime.runs import first_stage


class PrecomputeStage(StageSettings):
    """Encode a data set once, instead of in every epoch. Gives `data`."""

    GIVES: ClassVar[tuple[str, ...]] = ("data",)

    kind: Literal["precompute"]
    encoder: str = Field(
        min_length=1, description="A run that can be a first stage, or its model folder: ${stage.model}."
    )
    data: str = Field(min_length=1, description="The data set to encode: ${stage.data}, or its folder.")
    dest: str = Field(min_length=1, description="Folder of the new data set.")
    arrays: Literal["auto", "latents", "codes"] = Field(
        "auto", description="latents, codes, or auto: codes if there are any."
    )
    actors: int = Field(1, ge=1, description="How many shards are encoded in parallel.")
    cpus_per_actor: float = Field(1.0, ge=0.1, description="CPUs of each actor.")
    gpus_per_actor: float = Field(0.0, ge=0, description="GPUs of each actor; a fraction shares one.")

    def check(self, place: PipelinePlace) -> None:
        if "://" in self.dest:
            raise ConfigError(f"dest: {self.dest}: precompute into a local folder, then copy it")

    def identity(self, place: PipelinePlace) -> dict[str, Any]:
        return {
            "encoder": self._encoder(place).digest,
            "data": Manifest.load(place.path(self.data)).digest,
            "arrays": self.arrays,
            "dest": place.path(self.dest),
        }

    def in_place(self, outputs: Outputs, place: PipelinePlace) -> bool:
        there = Manifest.exists(outputs["data"])
        return there and Manifest.load(outputs["data"]).digest == outputs["digest"]

    def demand(self, place: PipelinePlace) -> Demand:
        return Demand(max(1.0, self.actors * self.cpus_per_actor), self.actors * self.gpus_per_actor)

    def use(self, place: PipelinePlace, trained: Mapping[str, Recipe]) -> Use:
        fields = "actors, cpus_per_actor, gpus_per_actor"
        return Use(actors=Actors(self.actors, self.cpus_per_actor, self.gpus_per_actor, fields))

    def perform(self, work: Work) -> Outputs:
        place = work.place
        dest = Path(place.path(self.dest))
        if Manifest.exists(dest):
            there = Manifest.load(dest)
            if not work.again and self._made(there, place):
                work.display.skipped("precompute", f"{there.samples:,} samples in {dest}, done before")
                return _outputs(dest)
            if work.before is None or work.before["digest"] != there.digest:
                raise DataError(
                    f"dest: {dest} holds a data set that this pipeline did not make; remove it, or choose "
                    "another place"
                )
            shutil.rmtree(dest)
        encoding.precompute(
            self.encoder,
            place.path(self.data),
            str(dest),
            kind=self.arrays,
            actors=self.actors,
            cpus=self.cpus_per_actor,
            gpus=self.gpus_per_actor,
            root=place.root,
            display=work.display,
        )
        return _outputs(dest)

    def _encoder(self, place: PipelinePlace) -> FirstStageConfig:
        return first_stage.named(self.encoder, place.root)

    def _made(self, there: Manifest, place: PipelinePlace) -> bool:
        """Whether a data set is the one that this stage would make."""
        wanted = self.identity(place)
        made = {info.encoder for name, info in there.columns.items() if name in self._columns()}
        encoders = [there.encoders[name] for name in made if name is not None]
        return any((e.digest, e.images) == (wanted["encoder"], wanted["data"]) for e in encoders)

    def _columns(self) -> tuple[str, ...]:
        latents, codes = (LATENT_MEAN,), (CODES,)
        return {"latents": latents, "codes": codes, "auto": latents + codes}.get(self.arrays, ())


def _outputs(dest: Path) -> Outputs:
    manifest = Manifest.load(dest)
    return {
        "data": str(dest),
        "digest": manifest.digest,
        "samples": manifest.samples,
        "bytes": manifest.bytes,
    }


COMPONENT = PrecomputeStage
