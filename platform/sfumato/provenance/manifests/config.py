"""The settings of C2PA signatures."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from sfumato.core.config import Config


class C2paSettings(Config):
    """Whose signature pictures carry. The algorithm follows from the certificate's public key."""

    certificate: str = Field(
        ..., description="PEM file: the signing certificate first, then those that vouch for it."
    )
    key: str | None = Field(
        None, description="PEM file of the private key, which its owner alone may read; without it: signer."
    )
    signer: str | None = Field(
        None,
        description="Function that signs where the key is kept, such as a key management service, by import "
        "path: takes bytes, returns the signature.",
    )
    timestamp: str | None = Field(
        None, pattern="^https?://", description="Time-stamping authority (RFC 3161), asked for every picture."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.key is None) == (self.signer is None):
            raise ValueError("give a key or a signer, one of the two")
        return self
