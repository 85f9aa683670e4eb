"""Networks that sign pictures: see README.md in this folder."""

from __future__ import annotations

from sfumato.families.signature.config import SignatureConfig as Config

__all__ = ["Config"]
