"""The flow family under another name: its runs say which functions of the package lead to the optimizer."""

from __future__ import annotations

import json
import sys
import traceback
import weakref
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from torch.optim.optimizer import register_optimizer_step_pre_hook

import sfumato
from sfumato.core.batch import DataSpec
from sfumato.core.family import Family
from sfumato.families.flow import Config

_PACKAGE = str(Path(sfumato.__file__).parent)


class Spied(Config):
    """What it builds writes the functions on the stack at an optimizer step to `told`, once."""

    family: Literal["call_spy:Spied"] = "call_spy:Spied"
    told: str

    def build(self, data: DataSpec) -> Family:
        def at_step(*_: Any) -> None:
            if not told.exists():
                told.write_text(json.dumps(own_calls(sys._getframe(1))))

        told, family = Path(self.told), super().build(data)
        # A hook may not remove itself while PyTorch calls it.
        weakref.finalize(family, register_optimizer_step_pre_hook(at_step).remove)
        return family


def own_calls(frame: FrameType) -> list[str]:
    """Calls of the package, outermost first; a function that runs a generator's body is no call."""
    return [
        f"{Path(entry.filename).relative_to(_PACKAGE)}:{entry.name}"
        for entry in traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
        if entry.filename.startswith(_PACKAGE) and entry.name != "<module>"
    ][::-1]
