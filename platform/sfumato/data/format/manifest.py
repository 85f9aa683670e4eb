"""`manifest.json`: what a packed data set holds, written last so that it vouches for everything else."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.validation import first_problem
from sfumato.data.format.encoder_info import EncoderInfo
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

    name: str = Field(description="File name, beside the manifest.", pattern=r"^[^/\\]+\.tar$")
    samples: int = Field(ge=1, description="How many samples it holds.")
    bytes: int = Field(ge=1, description="Its size.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Checksum of the file.")
    image: ImageInfo | None = Field(
        None, description="Size of this shard's images where the set has several (buckets); null: the set's."
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
    encoder: EncoderInfo | None = Field(
        None, description="What made the arrays beside the images, where `sfumato precompute` wrote the set."
    )

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
        """What a family has to know of this data."""
        return DataSpec(self.image.channels, self.image.height, self.image.width, self.classes)

    def image_of(self, shard: ShardInfo) -> ImageInfo:
        """What the images of one shard look like: all images of a shard have one size."""
        return shard.image or self.image

    def of_its_size(self) -> Manifest:
        """The part whose images have the size that the set says: all of it, unless there are buckets."""
        shards = tuple(shard for shard in self.shards if self.image_of(shard) == self.image)
        return self if shards == self.shards else self.model_copy(update={"shards": shards})

    @cached_property
    def digest(self) -> str:
        """sha256 over the content: shards, image and classes. Texts and location do not count."""
        content = self.model_dump(
            mode="json", include={"version", "shards", "image", "classes"}, exclude_none=True
        )
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def exists(cls, folder: str | Path) -> bool:
        return size_of(str(folder), FILE) is not None

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a folder or URI. Raises DataError in one line."""
        if not cls.exists(folder):
            raise DataError(f"{folder}: no {FILE} there; `sfumato pack SOURCE {folder}` makes a data set")
        try:
            return cls.model_validate_json(read_bytes(str(folder), FILE))
        except ValidationError as error:
            problem = first_problem(error, cls)
            raise DataError(f"{folder}/{FILE}: {problem}; pack the data set again") from error

    def save(self, folder: str | Path) -> None:
        """Write it: whole, or not at all."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        write_bytes(str(folder), FILE, text.encode())


def verify(folder: str | Path, mode: Verify = "auto") -> Manifest:
    """Check every shard against the manifest; DataError names the first that differs and how.

    `size` compares sizes; `checksum` also reads every byte; `auto` does that for sets below 1 GiB.
    """
    manifest = Manifest.load(folder)
    checksums = mode == "checksum" or (mode == "auto" and manifest.bytes < _CHECKSUM_LIMIT)
    for shard in manifest.shards:
        problem = _difference(str(folder), shard, checksums)
        if problem:
            raise DataError(f"{folder}: {shard.name}: {problem}; copy or pack the data set again")
    return manifest


def _difference(folder: str, shard: ShardInfo, checksums: bool) -> str:
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
