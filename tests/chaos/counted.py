"""The flow family, with a mark in a file for every micro-batch that any worker computes."""

from __future__ import annotations

import os

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import Nets
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng
from sfumato.families.flow.config import FlowConfig
from sfumato.families.flow.family import FlowFamily


class Counted(FlowFamily):
    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: StreamRng) -> Batch:
        # Opened each time, so that a worker which is killed leaves nothing unwritten.
        file = os.open(os.environ["SFUMATO_CHAOS_MARKS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, b".")
        os.close(file)
        return super().prepare(nets, batch, progress, rng)


class Config(FlowConfig):
    family: str = "counted:Config"  # type: ignore[assignment]

    def build(self, data: DataSpec) -> FlowFamily:
        return Counted(self, data)
