"""Variational and quantised autoencoders: see README.md in this folder."""

from __future__ import annotations

from sfumato.families.vae.config import VaeConfig as Config

__all__ = ["Config"]
