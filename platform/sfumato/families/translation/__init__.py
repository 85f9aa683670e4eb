"""Translation of images by adversarial networks, from pairs or from two unpaired sets: see README.md here."""

from __future__ import annotations

from sfumato.families.translation.config import TranslationConfig as Config

__all__ = ["Config"]
