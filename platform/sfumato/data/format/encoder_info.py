"""What a manifest says of arrays that a frozen encoder made of a data set beforehand."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sfumato.core.config import Config


class ArrayInfo(Config):
    """One array a sample, the member `KEY.NAME.npy` of its shard."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Column of a batch, for example latent_mean.")
    dtype: Literal["float32", "int64"] = Field(description="Type of its numbers.")
    shape: tuple[int, ...] = Field(description="Its shape, the same for every sample.")


class EncoderInfo(Config):
    """Which encoder made the arrays, of which images, and how."""

    run: str = Field(description="The run or model folder that was named.")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the encoder's model folder.")
    family: str = Field(description="The encoder's family.")
    images: str = Field(pattern=r"^[0-9a-f]{64}$", description="Digest of the data set that was encoded.")
    transform: str = Field(description="What was done to an image before it was encoded.")
    arrays: tuple[ArrayInfo, ...] = Field(min_length=1, description="What there is of every sample.")
