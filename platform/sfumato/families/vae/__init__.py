"""Variational and quantised autoencoders: see README.md beside this file."""

from __future__ import annotations

from sfumato.families.vae.config import VaeConfig as Config

__all__ = ["Config"]
