"""A manifest's description of further columns: their kind, where they are stored, which encoder made them.

A column's values are in one of five places (`ColumnInfo.stored`):

    index     the shard's index itself: texts, tags, vectors, cameras, labels
    members   members `KEY.NAME.png` or `KEY.NAME.npy` of the tar, whose byte places are in the index
    side      files next to the shards, one row after another in the order of the index
    several   the same with a value for each of a sample's texts, and of variable length (`several.py`)
    arrays    members `KEY.NAME.npy` with their places in `SHARD.arrays.arrow`, as older versions wrote them
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from sfumato.core.columns import NAME, RESERVED, Column, Kind
from sfumato.core.config import Config

TEXT = "text"
"""The column of captions: the index's own, unless the manifest has several per sample under this name."""
TEXT_COLUMN = Column("text", "str")
BFLOAT16 = np.dtype("V2")
"""NumPy has no bfloat16: its two bytes are passed on unchanged, and become numbers in torch."""
Stored = Literal["index", "members", "side", "several", "arrays"]
_SHA256 = r"^[0-9a-f]{64}$"


class SideFile(Config):
    """A file next to a shard that holds one column of its samples."""

    name: str = Field(description="File name, next to the manifest.", pattern=r"^[^/\\]+\.bin$")
    bytes: int = Field(ge=1, description="Its size.")
    sha256: str = Field(pattern=_SHA256, description="Checksum of the file.")


class ColumnInfo(Config):
    """One further column of every sample."""

    kind: Kind = Field(description="What it is.")
    dtype: str = Field(description="Type of its numbers, or str.")
    shape: tuple[int, ...] = Field(
        (), description="Of one sample; of an image, (C, H, W) for a sample of the set's usual size."
    )
    classes: tuple[str, ...] = Field((), description="Of a label: names of its numbers.")
    stored: Stored = Field(description="Where its values are stored.")
    samples: int = Field(0, ge=0, description="How many samples have it.")
    encoder: str | None = Field(None, description="Which of the set's encoders made it.")
    texts: str | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="If stored is several: the column of texts for each of which it has a value.",
    )
    sha256: str | None = Field(
        None, pattern=_SHA256, description="Checksum of its content in the indexes, all shards in order."
    )
    files: Mapping[str, SideFile] = Field(
        default_factory=dict,
        description="By the name of a shard: the file next to it, if stored is side or several.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ColumnInfo:
        _ = self.column  # which raises ValueError
        if (self.stored == "several") != (self.texts is not None):
            raise ValueError("`texts` goes with stored: several, and with nothing else")
        return self

    @property
    def beside_shards(self) -> bool:
        """Whether its values are in files next to the shards."""
        return self.stored in ("side", "several")

    @property
    def may_lack(self) -> bool:
        """Whether a sample may lack it, and then cannot be used: not where files of its own hold it, without
        gaps, and a text that is missing counts as empty."""
        return self.stored in ("index", "members") and self.kind != "text"

    @property
    def column(self) -> Column:
        """What a family has to know about it."""
        return Column(self.kind, self.dtype, self.shape, self.classes)

    def beside(self, shards: Set[str]) -> ColumnInfo:
        """The column of these shards alone."""
        files = {shard: file for shard, file in self.files.items() if shard in shards}
        return self if len(files) == len(self.files) else self.model_copy(update={"files": files})

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample's numbers."""
        return int(np.prod(self.shape, dtype=np.int64)) * numpy_type(self.dtype).itemsize


class EncoderInfo(Config):
    """Which encoder made columns, of which images, and how."""

    run: str = Field(description="The named run or model folder.")
    digest: str = Field(pattern=_SHA256, description="sha256 of the encoder's model folder.")
    family: str = Field(description="The encoder's family.")
    images: str = Field(pattern=_SHA256, description="Digest of the encoded data set.")
    transform: str = Field(description="How an image was prepared before it was encoded.")


def numpy_type(dtype: str) -> np.dtype[Any]:
    """The type of an array in memory; bfloat16 is `BFLOAT16`."""
    return BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)


def from_single_encoder(encoder: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns and encoders, as plain data, of an old manifest that could have only one encoder.

    Raises KeyError or TypeError for anything else.
    """
    told = dict(encoder)
    arrays = {str(array["name"]): array for array in told.pop("arrays")}
    name = next((word for word in ("codes", TEXT) if any(word in array for array in arrays)), "latents")
    columns = {
        array: {
            "kind": "array",
            "dtype": info["dtype"],
            "shape": info["shape"],
            "stored": "arrays",
            "encoder": name,
        }
        for array, info in arrays.items()
    }
    return columns, {name: told}


def check_names(columns: Mapping[str, ColumnInfo], encoders: Mapping[str, EncoderInfo]) -> None:
    """Raises ValueError for names that cannot be used, and encoders that are not described."""
    for name, info in columns.items():
        if not re.match(NAME, name) or name in RESERVED:
            raise ValueError(f"columns: {name!r} cannot name a further column")
        if info.encoder is not None and info.encoder not in encoders:
            raise ValueError(
                f"columns: {name} was made by the encoder {info.encoder!r}, which is not described"
            )
