"""The result of running a pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

from sfumato.runtime.pipeline.stage import Outputs


@dataclass
class Result:
    """What a call did."""

    outputs: dict[str, Outputs] = field(default_factory=dict)
    """Outputs of every finished stage."""
    ran: dict[str, float] = field(default_factory=dict)
    """Durations of the stages that this call completed."""
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    """Stages that were not run, each with the failed stage that prevented it."""
    parent: str | None = None
    """The pipeline's run in MLflow, if anything ran."""
