"""Stage `pack`: images into shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sfumato.data.format.faults import OnError, Wording
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing import pack as packing
from sfumato.data.packing.layout import TRAIN, VAL
from sfumato.data.packing.opt_out import read_lists
from sfumato.data.packing.source import SourceConfig
from sfumato.data.packing.source_files import state
from sfumato.data.packing.sources import SOURCES
from sfumato.errors import ConfigError, DataError
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.stage import Outputs, StageSettings, Work, digest

_WORDING = Wording(skip="on_error: skip in this stage", limit="max_errors of this stage")


class PackStage(StageSettings):
    """Pack a source of images into a data set. Gives `data` (of a split set its train part) and `val`."""

    GIVES: ClassVar[tuple[str, ...]] = ("data", "val")

    kind: Literal["pack"]
    source: Annotated[SourceConfig, SOURCES] = Field(
        description="What to pack, as in `data.source` of a recipe."
    )
    dest: str = Field(min_length=1, description="Folder of the data set.")
    on_error: OnError = Field("fail", description="What to do with an image that cannot be used.")
    max_errors: int = Field(100, ge=0, description="With skip: stop after more than this many.")
    shard_size: int | None = Field(
        None, ge=1, description="Samples per shard; null: up to 128 MiB of pixels."
    )

    def check(self, place: PipelinePlace) -> None:
        if "://" in self.dest:
            raise ConfigError(f"dest: {self.dest}: pack into a local folder, then copy it")

    def identity(self, place: PipelinePlace) -> dict[str, Any]:
        """The source's settings, and names, sizes and times of its files."""
        settings = self.model_dump(mode="json", exclude={"kind", "needs", "dest"})
        found: dict[str, Any] = {
            "pack": settings,
            "dest": place.path(self.dest),
            "files": _files(self._source(place)),
        }
        if lists := read_lists(self._source(place).opt_out).lists:
            found["opt_out"] = [one.sha256 for one in lists]
        return found

    def in_place(self, outputs: Outputs, place: PipelinePlace) -> bool:
        before: str = outputs["digest"]
        return _digest_at(outputs["data"]) == before

    def perform(self, work: Work) -> Outputs:
        dest = Path(work.place.path(self.dest))
        data = dest / TRAIN if self.source.val else dest
        there = _digest_at(str(data))
        ours = work.before is not None and there == work.before["digest"]
        if there is not None and not ours:
            if work.before is not None or work.again:
                raise DataError(
                    f"dest: {dest} holds a data set that this pipeline did not pack; remove it, or choose "
                    "another place"
                )
            work.display.note(f"{data} was packed before, not by this pipeline: it is used as it is")
            return _outputs(data, adopted=True)
        if ours and work.before is not None and work.before.get("adopted"):
            raise DataError(
                f"dest: {dest} was packed elsewhere, so this pipeline does not replace it; remove it, "
                "or choose another place"
            )
        work.display.stage("pack")
        report = packing.pack(
            self._source(work.place),
            dest,
            overwrite=ours,
            on_error=self.on_error,
            max_errors=self.max_errors,
            shard_size=self.shard_size,
            progress=work.display.update,
            note=work.display.note,
            wording=_WORDING,
        )
        for fault in report.skipped:
            work.display.note(f"skipped {fault}")
        work.display.done(f"{report.manifest.samples:,} images in {data}")
        return _outputs(data, adopted=False)

    def _source(self, place: PipelinePlace) -> SourceConfig:
        lists = tuple(one if "://" in one else str(place.root / one) for one in self.source.opt_out)
        changes: dict[str, Any] = {"opt_out": lists} if lists else {}
        if (path := getattr(self.source, "path", None)) is not None:
            changes["path"] = str(place.root / Path(path).expanduser())
        return self.source.model_copy(update=changes)


def _outputs(data: Path, *, adopted: bool) -> Outputs:
    manifest = Manifest.load(data)
    outputs: Outputs = {"data": str(data), "digest": manifest.digest, "samples": manifest.samples}
    val = data.with_name(VAL)
    if data.name == TRAIN and Manifest.exists(val):
        outputs["val"] = str(val)
        outputs["digest_val"] = Manifest.load(val).digest
    return {**outputs, "bytes": manifest.bytes, "adopted": adopted}


def _digest_at(data: str) -> str | None:
    return Manifest.load(data).digest if Manifest.exists(data) else None


def _files(source: SourceConfig) -> str | None:
    """Changes when a file of the source is added, removed or rewritten; None if it has no files."""
    text = getattr(source, "path", None)
    if text is None:
        return None
    path = Path(text)
    if not path.exists():
        raise DataError(f"source.path: {path} does not exist")
    if path.is_file():
        return state(path)
    found = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return digest([[os.path.relpath(file, path), state(Path(file))] for file in found])


COMPONENT = PackStage
