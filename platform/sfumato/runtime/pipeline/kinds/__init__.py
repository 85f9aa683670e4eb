"""What a stage does, a kind a file. A new kind is a new file and a line here."""

from __future__ import annotations

from sfumato.runtime.pipeline.kinds.evaluate import EvaluateStage
from sfumato.runtime.pipeline.kinds.gate import GateStage
from sfumato.runtime.pipeline.kinds.pack import PackStage
from sfumato.runtime.pipeline.kinds.precompute import PrecomputeStage
from sfumato.runtime.pipeline.kinds.register import RegisterStage
from sfumato.runtime.pipeline.kinds.stage import StageSettings
from sfumato.runtime.pipeline.kinds.train import TrainStage

KINDS: dict[str, type[StageSettings]] = {
    "pack": PackStage,
    "train": TrainStage,
    "precompute": PrecomputeStage,
    "evaluate": EvaluateStage,
    "gate": GateStage,
    "register": RegisterStage,
}
