"""Denoising diffusion in pixel space, class-conditional or not: see README.md in this folder."""

from __future__ import annotations

from sfumato.families.diffusion.config import DiffusionConfig as Config

__all__ = ["Config"]
