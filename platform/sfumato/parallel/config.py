"""The `parallel:` part of a recipe: workers, their resources, and the strategy."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from sfumato.core.components import Names
from sfumato.core.config import Config
from sfumato.core.finding import Folder
from sfumato.parallel.capabilities import Feature

STRATEGIES: Folder[Any] = Folder("sfumato.parallel.strategies", "COMPONENT", object)
"""The folder of the strategies; `sfumato.parallel.STRATEGIES` imports them."""


class FsdpSettings(Config):
    """Settings of `parallel.strategy=fsdp`."""

    reshard_after_forward: bool = Field(
        True,
        description="Free a block's gathered parameters after its forward pass and gather them again for "
        "its backward pass: less memory, half as much communication again.",
    )
    bf16_parameters: bool = Field(
        False,
        description="Gather parameters in bfloat16 (train.precision=bf16): half the communication. The "
        "sharded parameters, the reduction of gradients and the update stay in float32.",
    )

    shard: int | None = Field(
        None,
        ge=2,
        exclude_if=lambda value: value is None,
        description="Ranks over which parameters are cut; groups of so many hold replicas of one another "
        "and average their gradients (hybrid sharding, Zhao et al. 2023, section 3.2.2). With the GPUs of a "
        "node, only gradients leave it. Must divide parallel.workers. null: all ranks.",
    )

    def wanted(self) -> dict[Feature, str]:
        """The features that these settings ask of a strategy, each with the field that asks."""
        asked = {
            Feature.BF16_PARAMETERS: self.bf16_parameters and "parallel.fsdp.bf16_parameters=true",
            Feature.HYBRID: self.shard is not None and f"parallel.fsdp.shard={self.shard}",
            Feature.RESHARD: not self.reshard_after_forward and "parallel.fsdp.reshard_after_forward=false",
        }
        return {feature: field for feature, field in asked.items() if field}


class ParallelSettings(Config):
    """How the work is distributed; nothing here changes a result."""

    strategy: Annotated[str, Names(STRATEGIES)] = Field(
        "ddp",
        description="`single` keeps the networks in one worker; `ddp` replicates them over all; `fsdp` "
        "shards parameters, gradients, optimizer state and averages (FSDP2); `zero1`, `zero2` and `zero3` "
        "are DeepSpeed's: they shard optimizer state, then also gradients, then also parameters. For your "
        "own strategy: its import path, package.module:Class.",
    )
    options: dict[str, Any] = Field(
        {},
        exclude_if=lambda value: not value,
        description="The strategy's own settings, if it has any (those of fsdp may also be given in `fsdp`).",
    )
    workers: int = Field(1, ge=1, description="Training workers (ranks).")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Makes the run elastic: if nodes are lost, it continues with as few workers as these, "
        "and grows to `workers` when there is room again, each time from the last checkpoint. null: always "
        "`workers`.",
    )
    resize_interval: float = Field(
        60.0,
        ge=1,
        description="Seconds between checks for room for more workers, in a run with min_workers.",
    )
    offload: bool = Field(
        False,
        description="Keep the optimizer's state in host memory (fsdp: sharded parameters and gradients "
        "too), to save GPU memory.",
    )
    fsdp: FsdpSettings = Field(FsdpSettings(), description="Settings of strategy fsdp.")
    cpus_per_worker: float = Field(1.0, gt=0, description="Logical CPUs that Ray reserves for a worker.")
    gpus_per_worker: float = Field(
        0.0, ge=0, description="GPUs that Ray reserves for a worker; 0 trains on CPU."
    )
    check_memory: bool = Field(
        True,
        exclude_if=lambda value: value is True,
        description="Before training from stored weights, refuse a run whose weights, gradients and "
        "optimizer need more memory than the machine or its GPU has; false tries.",
    )
    resources_per_worker: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Custom resources of the cluster that Ray reserves for a worker, such as {trainer: 1}: "
        "workers then run on nodes that have them; data is read on any node.",
    )
    threads_per_worker: int | None = Field(
        None,
        ge=1,
        description="Threads that torch uses in a worker; null divides the machine's cores by the workers. "
        "The bits of a result depend on it.",
    )
    max_failures: int = Field(
        3, ge=0, description="How often a run resumes from its last checkpoint after workers are lost."
    )
    hang_timeout: float | None = Field(
        600.0,
        ge=1,
        description="Seconds after which a step that does not end, or a worker that does not answer, counts "
        "as lost; the ranks and the lines where they are stuck are named. Start-up, the first step, "
        "checkpoints and previews may take longer. null waits forever.",
    )

    @property
    def least_workers(self) -> int:
        """The smallest number of workers that may train."""
        return self.min_workers or self.workers

    def wanted(self) -> dict[Feature, str]:
        """The features that these settings ask of the strategy, each with the field that asks."""
        asked = {
            Feature.MANY_WORKERS: self.workers > 1 and f"parallel.workers={self.workers}",
            Feature.OFFLOAD: self.offload and "parallel.offload=true",
        }
        return {feature: field for feature, field in asked.items() if field} | self.fsdp.wanted()

    @property
    def elastic(self) -> bool:
        return self.least_workers < self.workers

    @field_validator("min_workers")
    @classmethod
    def _not_more(cls, value: int | None, info: ValidationInfo) -> int | None:
        most = info.data.get("workers")
        if value is not None and most is not None and value > most:
            raise ValueError(f"is more than parallel.workers={most}")
        return value

    @field_validator("resources_per_worker")
    @classmethod
    def _custom(cls, value: dict[str, float]) -> dict[str, float]:
        if known := sorted({"CPU", "GPU"} & value.keys()):
            raise ValueError(f"holds {known[0]}; set parallel.{known[0].lower()}s_per_worker instead")
        return value
