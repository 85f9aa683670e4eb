"""What came of a call that ran a pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

from sfumato.runtime.pipeline.kinds.stage import Outputs


@dataclass
class Result:
    """What a call did."""

    outputs: dict[str, Outputs] = field(default_factory=dict)
    """Of every stage that is done."""
    ran: dict[str, float] = field(default_factory=dict)
    """Seconds of the stages that this call ran to their end."""
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    """Stages that were not run, and the failed stage because of which."""
    parent: str | None = None
    """The pipeline's run in MLflow, where anything was run."""
