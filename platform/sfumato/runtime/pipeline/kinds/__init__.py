"""What the stages of pipelines do: one file per kind, found by its name. Interface: `pipeline/stage.py`."""

from __future__ import annotations

from sfumato.core.finding import Folder
from sfumato.runtime.pipeline.stage import StageSettings

KINDS: Folder[type[StageSettings]] = Folder("sfumato.runtime.pipeline.kinds", "COMPONENT", StageSettings)
