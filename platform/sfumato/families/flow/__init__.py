"""Normalizing flows with an exact likelihood, class-conditional or not: see README.md in this folder."""

from __future__ import annotations

from sfumato.families.flow.config import FlowConfig as Config

__all__ = ["Config"]
