"""The `train:` part of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sfumato.core.config import Config, Neutral
from sfumato.core.earlier_defaults import Before
from sfumato.core.schedules import power_exponent


class CheckpointSettings(Config):
    """When checkpoints are written and how many are kept."""

    every: int = Field(20_000, gt=0, description="Images between two checkpoints.")
    keep: int = Field(2, ge=1, description="How many of the newest checkpoints to keep.")
    keep_every: int | None = Field(
        None, gt=0, description="Also keep the first checkpoint after every so many images; null: none."
    )
    uri: str | None = Field(
        None,
        description="Folder or object storage URI (s3://bucket/prefix) for checkpoints; null keeps them in "
        "the run's folder.",
    )


class SnapshotSettings(Config):
    """Snapshots of averages, from which one of any length can be built after training (`sfumato ema`)."""

    every: int | None = Field(
        None, gt=0, description="Images between two snapshots of the averages; null keeps none."
    )
    sigma_rel: tuple[float, ...] = Field(
        (0.05, 0.1),
        min_length=1,
        description="Relative widths of the averages (Karras et al. 2023). Two suffice for any width between "
        "and well beyond them.",
    )

    @field_validator("sigma_rel")
    @classmethod
    def _possible(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for width in value:
            power_exponent(width)
        if len(set(value)) < len(value):
            raise ValueError(f"widths must differ, got {value}")
        return value


class PreviewConditions(Config):
    """The conditions of the preview grids, the same every time; image i takes row i, cycling."""

    prompts: tuple[str, ...] = Field((), description="Texts, for a model that takes one.")
    negative: tuple[str, ...] = Field((), description="Texts to guide the images away from.")
    labels: tuple[int | str, ...] = Field(
        (), description="Classes, by name or number; empty cycles through all classes."
    )
    data: str | None = Field(
        None,
        description="Packed data set whose first rows give the conditions not given above. Null: "
        "the training data, for conditions that the model needs.",
    )


class TrainSettings(Config):
    """How long to train, on which batches, at which precision. All intervals are in images seen."""

    images: int = Field(..., gt=0, description="Total images to train on; rounded up to whole batches.")
    batch: int = Field(128, gt=0, description="Global batch: rows of one optimizer step over all ranks.")
    micro_batch: int | None = Field(
        None,
        gt=0,
        description="Rows of one forward and backward pass. If set, the global batch is divided in the same "
        "way for any number of workers, so that 1 and 2 workers add the same numbers; null gives every "
        "worker its whole share at once.",
    )
    clip_grad_norm: Annotated[Annotated[float, Field(gt=0)] | Literal["auto"] | None, Before(2, 1.0)] = Field(
        "auto",
        description="Largest gradient norm; null does not clip. auto: the family's choice, which is 1 "
        "unless its README says otherwise.",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 runs the forward pass in autocast.")
    compile: Neutral[bool] = Field(False, description="Compile the trained networks (torch.compile).")
    activation_checkpointing: Neutral[bool] = Field(
        False,
        description="Recompute the activations of each block in the backward pass instead of keeping "
        "them: less memory, about a third more time, the same numbers.",
    )
    max_skipped_steps: Neutral[int] = Field(
        10,
        ge=0,
        description="How many updates whose gradient is not finite may be skipped in consecutive log "
        "intervals. More roll training back to its last checkpoint, once; if it fails again, it stops.",
    )
    log_every: Neutral[int] = Field(
        2_000, gt=0, description="Images between two points of the training curves."
    )
    preview_every: Neutral[int] = Field(
        20_000, gt=0, description="Images between two grids of preview samples."
    )
    preview_samples: Neutral[int] = Field(
        40, ge=0, description="Images in a preview grid; 0 turns previews off."
    )
    preview_conditions: Neutral[PreviewConditions] = Field(
        PreviewConditions(), description="Conditions of the images in a preview grid."
    )
    checkpoint: Neutral[CheckpointSettings] = Field(CheckpointSettings(), description="Checkpoints.")
    snapshots: SnapshotSettings = Field(SnapshotSettings(), description="Averages for `sfumato ema`.")
