"""Where images can be packed from: one file per kind of source, found by its name.

`packing/source.py` is their interface; `packing/recognition.py` finds the kind of a file or folder.
"""

from __future__ import annotations

from sfumato.core.components import Components
from sfumato.data.packing.source import SourceConfig

SOURCES: Components[SourceConfig] = Components("sfumato.data.packing.sources", SourceConfig)
