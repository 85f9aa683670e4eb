"""Autoregressive models of pixels and of codes: see README.md in this folder."""

from __future__ import annotations

from sfumato.families.autoregressive.config import AutoregressiveConfig as Config

__all__ = ["Config"]
