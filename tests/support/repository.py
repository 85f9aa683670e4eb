"""Where this repository's own files lie, for tests that read them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PLATFORM = ROOT / "platform"
"""The folder to put on a process's PYTHONPATH."""
PIPELINES = ROOT / "pipelines"
DIGITS = PIPELINES / "digits" / "ddpm.yaml"
