"""Generative adversarial networks, class-conditional or not: see README.md beside this file."""

from __future__ import annotations

from sfumato.families.gan.config import GanConfig as Config

__all__ = ["Config"]
