"""Runs of version 0.1: found by their recipe, and taken over with what they have finished."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from sfumato import recipe as recipes
from sfumato.errors import CheckpointError, ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.commands import stages
from sfumato.runtime.commands.evaluate import measure
from sfumato.runtime.commands.sample import draw, export
from sfumato.runtime.runs import earlier
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.runs.session import open_session
from sfumato.sampling.generator import Generator
from sfumato.training import checkpoint as checkpoints
from sfumato.training.store import LocalStore

OLD = Path(__file__).parents[3] / "data" / "runs-0.1"
