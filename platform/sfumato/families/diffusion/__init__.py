"""Denoising diffusion in pixel space, class-conditional or not: see README.md beside this file."""

from __future__ import annotations

from sfumato.families.diffusion.config import DiffusionConfig as Config

__all__ = ["Config"]
