"""Sfumato trains, evaluates and compares image generators of every family on Ray, from one recipe."""

from __future__ import annotations

__version__ = "0.1.0"
