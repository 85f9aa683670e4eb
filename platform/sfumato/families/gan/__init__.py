"""Generative adversarial networks, class-conditional or not: see README.md in this folder."""

from __future__ import annotations

from sfumato.families.gan.config import GanConfig as Config

__all__ = ["Config"]
