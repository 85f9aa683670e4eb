"""`manifest.json`: what a packed data set holds, written last so that it vouches for everything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.validation import first_problem
from sfumato.data.format.columns import (
    TEXT,
    TEXT_COLUMN,
    ColumnInfo,
    EncoderInfo,
    SideFile,
    check_names,
    from_single_encoder,
)
from sfumato.data.storage.read import PIECE, open_file, read_bytes, size_of
from sfumato.data.storage.write import write_bytes
from sfumato.errors import DataError

FILE = "manifest.json"
_CHECKSUM_LIMIT = 1 << 30
Verify = Literal["auto", "checksum", "size"]


class ImageInfo(Config):
    """What every image of the set, or of one of its shards, looks like."""

    channels: Literal[1, 3] = Field(description="1 is grey, 3 is RGB.")
    height: int = Field(ge=1, description="Rows.")
    width: int = Field(ge=1, description="Columns.")


class ShardInfo(Config):
    """One tar."""

    name: str = Field(description="File name, next to the manifest.", pattern=r"^[^/\\]+\.tar$")
    samples: int = Field(ge=1, description="How many samples it holds.")
    bytes: int = Field(ge=1, description="Its size.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Checksum of the file.")
    image: ImageInfo | None = Field(
        None, description="Size of this shard's images if the set has several (buckets); null: the set's."
    )


class OptOutList(Config):
    """A list of samples that must not be trained on, by its content."""

    name: str = Field(description="File name.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Checksum of the file.")
    entries: int = Field(ge=0, description="How many entries it has.")


class LeftOut(Config):
    """What was asked to be left out when the set was made, and how many samples were, by reason.

    Of a source that was split, both parts have the counts of the whole.
    """

    lists: tuple[OptOutList, ...] = Field((), description="The opt-out lists that were honoured.")
    counts: dict[str, int] = Field(default_factory=dict, description="Samples left out, by reason.")
    dedupe: int | None = Field(
        None, description="Near duplicates were left out up to so many differing bits; null: they were not."
    )
    keys_sha256: str = Field(
        "",
        description="Checksum of the keys that the indexes leave out although the tars hold them; empty: "
        "none.",
    )


class Manifest(Config):
    """The description of a packed data set. Its order of shards is part of the training order."""

    version: Literal[1] = Field(1, description="Version of this format.")
    name: str = Field(description="Name of the set.")
    shards: tuple[ShardInfo, ...] = Field(min_length=1, description="The tars, in order.")
    image: ImageInfo = Field(
        description="Channels and size of the images; with buckets, the size that most images have."
    )
    classes: tuple[str, ...] = Field((), description="Names of the labels; empty: no labels.")
    captions: int = Field(0, ge=0, description="How many samples have a caption.")
    split: str = Field("", description="Which part of its source this is: train, val, or empty for all.")
    source: str = Field("", description="Where the images came from.")
    licence: str = Field("", description="Terms of use of the images.")
    licences: dict[str, int] = Field(
        default_factory=dict,
        description="Samples by the licence in their own metadata, the empty name for those without; empty: "
        "no sample has one.",
    )
    left_out: LeftOut | None = Field(None, description="Opt-out lists and removal of near duplicates.")
    columns: dict[str, ColumnInfo] = Field(
        default_factory=dict, description="Further columns of every sample, by name."
    )
    encoders: dict[str, EncoderInfo] = Field(
        default_factory=dict, description="Encoders that added columns (`sfumato precompute`), by name."
    )

    @model_validator(mode="before")
    @classmethod
    def _single_encoder(cls, content: Any) -> Any:
        """Older manifests have one field `encoder`, which also describes its arrays."""
        if not isinstance(content, dict) or "encoder" not in content:
            return content
        content = dict(content)
        encoder = content.pop("encoder")
        if encoder is None:
            return content
        try:
            columns, encoders = from_single_encoder(encoder)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"encoder: {error} is missing or damaged") from error
        return {**content, "columns": columns, "encoders": encoders}

    @model_validator(mode="after")
    def _named_well(self) -> Manifest:
        check_names(self.columns, self.encoders)
        return self

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def shard_samples(self) -> tuple[int, ...]:
        return tuple(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def spec(self) -> DataSpec:
        """All that a family can know about this data; `columns.spec_of` describes what batches carry."""
        extra = {TEXT: TEXT_COLUMN} if self.captions else {}
        extra |= {name: info.column for name, info in self.columns.items()}
        image = self.image
        return DataSpec(image.channels, image.height, image.width, self.classes, extra)

    def image_of(self, shard: ShardInfo) -> ImageInfo:
        """The geometry of the images of one shard: all have the same size."""
        return shard.image or self.image

    def further_images(self, names: Iterable[str], beside: ImageInfo) -> dict[str, ImageInfo]:
        """The geometry of the named image columns for images of a size: they scale with it.

        Raises DataError if that gives a fraction of a pixel.
        """
        looks = {}
        for name in names:
            info = self.columns[name]
            if info.kind != "image":
                continue
            channels, height, width = info.shape
            rows, columns = height * beside.height, width * beside.width
            if rows % self.image.height or columns % self.image.width:
                raise DataError(
                    f"{self.name}: {name} is {width}x{height} beside images of {self.image.width}x"
                    f"{self.image.height}, which does not divide for those of {beside.width}x{beside.height}"
                )
            sides = {"height": rows // self.image.height, "width": columns // self.image.width}
            looks[name] = ImageInfo.model_validate({"channels": channels, **sides})
        return looks

    def of_its_size(self) -> Manifest:
        """The part whose images have the set's size: all of it, unless there are buckets."""
        shards = tuple(shard for shard in self.shards if self.image_of(shard) == self.image)
        return self if shards == self.shards else self.model_copy(update={"shards": shards})

    @cached_property
    def digest(self) -> str:
        """sha256 over the content: shards, image and classes, and which samples of the shards do not count.
        Texts and location do not count."""
        content = self.model_dump(
            mode="json", include={"version", "shards", "image", "classes"}, exclude_none=True
        )
        if self.left_out is not None and self.left_out.keys_sha256:
            content["left_out"] = self.left_out.keys_sha256
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def exists(cls, folder: str | Path) -> bool:
        return size_of(str(folder), FILE) is not None

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a folder or URI. Raises DataError in one line."""
        if not cls.exists(folder):
            raise DataError(f"{folder}: no {FILE} there; `sfumato pack SOURCE {folder}` creates a data set")
        try:
            return cls.model_validate_json(read_bytes(str(folder), FILE))
        except ValidationError as error:
            problem = first_problem(error, cls)
            raise DataError(f"{folder}/{FILE}: {problem}; pack the data set again") from error

    def save(self, folder: str | Path) -> None:
        """Write it whole, or not at all."""
        content = self.model_dump(mode="json")
        for name in ("licences", "left_out"):  # older versions read what does not use them
            if not content[name]:
                del content[name]
        if not self.columns and not self.encoders:  # byte for byte as older versions wrote it, and can read
            content = {name: value for name, value in content.items() if name not in ("columns", "encoders")}
            content["encoder"] = None
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_bytes(str(folder), FILE, text.encode())


def verify(folder: str | Path, mode: Verify = "auto") -> Manifest:
    """Check every shard against the manifest; the DataError names the first difference.

    `size` compares sizes; `checksum` also reads every byte; `auto` does that for sets below 1 GiB.
    """
    manifest = Manifest.load(folder)
    checksums = mode == "checksum" or (mode == "auto" and manifest.bytes < _CHECKSUM_LIMIT)
    for shard in manifest.shards:
        problem = difference(str(folder), shard, checksums)
        if problem:
            raise DataError(f"{folder}: {shard.name}: {problem}; copy or pack the data set again")
    for name, info in manifest.columns.items():
        for shard in manifest.shards if info.beside_shards else ():
            if shard.name not in info.files:
                raise DataError(f"{folder}: {FILE}: {name} has no file for {shard.name}; precompute it again")
            problem = difference(str(folder), info.files[shard.name], checksums)
            if problem:
                file = info.files[shard.name].name
                raise DataError(f"{folder}: {file}: {problem}; copy or precompute the data set again")
    return manifest


def difference(folder: str, shard: ShardInfo | SideFile, checksums: bool) -> str:
    """How a file differs from its entry in the manifest; empty if it does not."""
    size = size_of(folder, shard.name)
    if size is None:
        return "missing"
    if size != shard.bytes:
        kind = "truncated" if size < shard.bytes else "too long"
        return f"{kind}: {size:,} bytes where the manifest says {shard.bytes:,}"
    if checksums and file_digest(folder, shard.name) != shard.sha256:
        return "its checksum differs from the manifest's"
    return ""


def file_digest(folder: str, name: str) -> str:
    """sha256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with open_file(folder, name) as file:
        while chunk := file.read(PIECE):
            digest.update(chunk)
    return digest.hexdigest()
