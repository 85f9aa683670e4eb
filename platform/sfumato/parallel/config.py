"""The `parallel:` part of a recipe: how many workers, with what, under which strategy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sfumato.core.config import Config


class ParallelSettings(Config):
    """Nothing here changes a result; it says how the work is spread."""

    strategy: Literal["single", "ddp"] = Field(
        "ddp", description="`single` keeps the networks in one worker, `ddp` replicates them over all."
    )
    workers: int = Field(1, ge=1, description="Training workers (ranks).")
    cpus_per_worker: float = Field(1.0, gt=0, description="Logical CPUs that Ray reserves for a worker.")
    gpus_per_worker: float = Field(
        0.0, ge=0, description="GPUs that Ray reserves for a worker; 0 trains on CPU."
    )
    threads_per_worker: int | None = Field(
        None,
        ge=1,
        description="Threads that torch uses in a worker; null divides the machine's cores by the workers. "
        "The bits of a result depend on it.",
    )
    max_failures: int = Field(
        3, ge=0, description="How often a run goes on from its last checkpoint after workers were lost."
    )
