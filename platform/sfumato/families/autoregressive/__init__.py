"""Autoregressive models of pixels and of codes: see README.md beside this file."""

from __future__ import annotations

from sfumato.families.autoregressive.config import AutoregressiveConfig as Config

__all__ = ["Config"]
